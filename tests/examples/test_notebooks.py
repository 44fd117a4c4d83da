"""Every notebook runs from its first cell to its last, on tiny data; it is committed without outputs."""

from pathlib import Path

import nbformat
import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ImageProcessor, DINOv2Model
from tests.curation.scenes import scene

from .conftest import EXAMPLES


nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.fixture
def model_folder(tmp_path) -> Path:
    torch.manual_seed(0)
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, layerscale_value=1.0
    )
    DINOv2Model(config).save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32}
    DINOv2ImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def parameters(model_folder, recipe, tmp_path) -> dict[str, str]:
    """The cell of parameters of each notebook, with tiny data."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(12):
        scene(seed, width=48, height=40).save(folder / f"{seed}.png")
    scene(3, width=48, height=40).save(folder / "again.png")
    return {
        "features": f"MODEL, IMAGES, IMAGE_SIZE = {str(model_folder)!r}, {str(folder)!r}, 64",
        "pretrain": f"TRAIN_DATA, OUTPUT, RECIPE = {str(folder)!r}, 'outputs/my_run', {recipe!r}\n"
        "OPTIONS = '--max_steps 2 --eval_steps 1 --eval_pictures 1'",
        "curation": f"POOL, CURATED, OUTPUT = {str(folder)!r}, None, 'outputs/curated'",
    }


def texts(notebook) -> str:
    """What the cells of an executed notebook show as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


SAID = {
    "features": ["DINOv2Model", "all tokens (1, 17, 32)", "(13, 32)"],
    "pretrain": ["dinov2-hf pretrain --config", "torch.Size([1, 32])", "report.html"],
    "curation": ["12 of 13 images are kept", "duplicate_of"],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, parameters, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    names = {line.split(" = ")[0] for line in cell.source.splitlines()}
    given = parameters[path.stem]
    namespace: dict = {}
    exec(given, namespace)
    assert names == namespace.keys() - {"__builtins__"}  # as many as the notebook has
    cell.source = given
    work = tmp_path / "work"
    work.mkdir()
    at = {"metadata": {"path": str(work)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=at).execute()
    said = texts(notebook)
    for words in SAID[path.stem]:
        assert words in said
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == SAID.keys()
