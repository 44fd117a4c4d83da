import pytest
import torch

from dinov2_hf.training.tf32 import without_tf32
from tests.importable_benchmarks import benchmarks_are_importable  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """Products and convolutions of float32 are not rounded to TF32 while they are held against those of a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with without_tf32():
        yield
