import sys
from pathlib import Path

import pytest
import torch

from dinov2_hf.training.tf32 import without_tf32


@pytest.fixture(scope="session", autouse=True)
def benchmarks_are_importable():
    """Steps and their simulation are benchmarks, which import their neighbours."""
    folder = str(Path(__file__).parents[2] / "examples" / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """Products and convolutions of float32 are not rounded to TF32 while they are held against those of a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with without_tf32():
        yield
