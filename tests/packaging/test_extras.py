"""Each extra alone: what needs it says so, and how to install it, before it does anything."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forked_python
from tests.packaging.lowest_versions import ROOT, lowest, requirements


TINY = " --per_device_train_batch_size 2 --num_prototypes 32 --head_hidden_size 32 --bottleneck_size 16"
# The command that needs packages of an extra, which are not there. `FOLDER` has images, `TIFF` is of five bands.
NEEDED = {
    "completion": ("shtab", "completion bash"),
    "curation": ("faiss", "curate --uncurated FOLDER --output_dir out"),
    "curation, connected components": ("scipy", "curate --uncurated FOLDER --output_dir out"),
    "datatrove": ("datatrove", "curate --uncurated FOLDER --output_dir out --executor slurm"),
    "ray": ("ray", "curate --uncurated FOLDER --output_dir out --executor ray"),
    "demo": ("gradio", "demo MODEL"),
    "demo, the search": ("faiss", "demo MODEL"),
    "evaluation": ("sklearn", "evaluate logistic_regression MODEL --train_data x --eval_data x --output_dir out"),
    "evaluation, segmentation": (
        "torchmetrics",
        "evaluate segmentation MODEL --train_data x --eval_data x --output_dir out",
    ),
    "lora": ("peft", "pretrain --train_data FOLDER --output_dir out --init_from MODEL --lora_rank 2" + TINY),
    "onnx": ("onnxscript", "export MODEL --format onnx --output_dir out"),
    "tensorboard": ("tensorboard", "pretrain --train_data FOLDER --output_dir out --report_to tensorboard" + TINY),
    "quickstart": ("sklearn", "write_digits out"),
}
PROGRAM = """
import sys
sys.modules[sys.argv[1]] = None  # as if it was not installed
if sys.argv[2] == "write_digits":
    sys.argv = sys.argv[2:]
    import runpy
    runpy.run_path({digits!r}, run_name="__main__")
from dinov2_hf.cli import main
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    from dinov2_hf import DINOv2Config, DINOv2ImageProcessor, DINOv2Model

    folder, model = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("model")
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
    config = DINOv2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    DINOv2Model(config).save_pretrained(model)
    DINOv2ImageProcessor().save_pretrained(model)
    return {"FOLDER": folder, "MODEL": model}


@pytest.mark.parametrize("case", NEEDED)
def test_what_is_missing_is_named_with_its_extra(case, places, tmp_path):
    package, command = NEEDED[case]
    words = [str(places.get(word, word)) for word in command.split()]
    program = PROGRAM.format(digits=str(ROOT / "examples" / "write_digits.py"))
    # Accelerate looks for trackers when it is imported.
    imported = ("torch",) if package == "tensorboard" else forked_python.TRANSFORMERS
    done = forked_python.run(["-c", program, package, *words], cwd=tmp_path, imported=imported)
    assert done.returncode == 1, done.stderr
    assert f'pip install "dinov2_hf[{case.split(",")[0]}]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_the_lowest_versions_are_all_that_is_named():
    pinned = lowest(requirements())
    assert "torch==2.11.*" in pinned
    assert len(pinned) == len(requirements())
    with pytest.raises(ValueError, match=r"numpy<3 is no name with a lowest version"):
        lowest(["numpy<3"])
