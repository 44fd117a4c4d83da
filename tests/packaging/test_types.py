"""Type checkers see the public names with their types, though Python imports each when it is first asked for."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PACKAGES = tuple(f"dinov2_hf{room}" for room in ("", ".models", ".pretraining", ".data", ".evaluation", ".curation"))
# What users write, and the mistakes that a checker should tell them of.
SNIPPET = """
import datasets
from dinov2_hf import DINOv2Config, DINOv2ImageProcessor, DINOv2Model, DINOv2PreTrainingConfig
from dinov2_hf.curation import CuratedImages, CurationArguments, curate, read_arguments
from dinov2_hf.evaluation import FeatureExtractor, evaluate_knn

model = DINOv2Model.from_pretrained("facebook/dinov2-small")
reveal_type(model)
reveal_type(model.config.hidden_size)
reveal_type(DINOv2PreTrainingConfig(backbone_config=DINOv2Config(hidden_size=32)).backbone_config)
extractor = FeatureExtractor(model, DINOv2ImageProcessor(), device="cpu")
images = datasets.load_dataset("imagefolder", data_dir="images")["train"]
features = extractor.features(images)
reveal_type(features.values)
reveal_type(evaluate_knn(extractor, images, images, ks=(1, 5)))
reveal_type(curate(read_arguments("recipe.yaml")))
reveal_type(CurationArguments().output_dir)
reveal_type(CuratedImages(output_dir="curated"))
evaluate_knn(extractor, images, images, ks="five")
evaluate_knn(extractor, images, images, neighbours=5)
model.config.hidden_size = "wide"
curate("recipe.yaml")
"""
REVEALED = [
    "dinov2_hf.models.modeling_dinov2.DINOv2Model",
    "int",
    "dinov2_hf.models.configuration_dinov2.DINOv2Config",
    "torch._tensor.Tensor",
    "dinov2_hf.evaluation.metrics.Metrics",
    "dinov2_hf.curation.run_context.Curation",
    "str",
    "dinov2_hf.curation.builder.CuratedImages",
]
ERRORS = ["arg-type", "call-arg", "assignment", "arg-type"]


def checked(path: Path, text: str) -> list[str]:
    """What mypy says of a file, a message a line, with the settings and the cache of `make lint`."""
    pytest.importorskip("mypy", reason="the tests of types need the package mypy")
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", path], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    # By the name alone: what the cache holds of a file of the same text has the folder of another run.
    return [line for line in done.stdout.splitlines() if f"/{path.name}:" in line]


def revealed(lines: list[str]) -> list[str]:
    return [match[1] for line in lines if (match := re.search(r'Revealed type is "(.*)"$', line))]


def test_no_public_name_is_any(tmp_path):
    names = [f"{package}.{name}" for package in PACKAGES for name in import_module(package).__all__]
    assert len(names) > 60
    code = [*(f"import {package}" for package in PACKAGES), *(f"reveal_type({name})" for name in names)]
    found = dict(zip(names, revealed(checked(tmp_path / "names.py", "\n".join(code))), strict=True))
    assert {name for name, kind in found.items() if kind == "Any" or kind.startswith("def (*Any")} == set()


def test_users_see_types_and_mistakes(tmp_path):
    lines = checked(tmp_path / "snippet.py", SNIPPET)
    assert revealed(lines) == REVEALED
    errors = [line.rpartition("[")[2].rstrip("]") for line in lines if ": error:" in line]
    assert errors == ERRORS, "\n".join(lines)
