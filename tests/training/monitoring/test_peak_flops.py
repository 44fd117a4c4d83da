"""The peak of a GPU is that of its name, and unknown for all others."""

import pytest
import torch

from dinov2_hf.training.monitoring.peak_flops import peak_flops, peak_of


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "no", 156),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla T4", "no", 8.1),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
    ],
)
def test_known_names(name, precision, teraflops):
    assert peak_of(name, precision) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU",
     "NVIDIA H100", "NVIDIA RTX A4000", "AMD Instinct MI300X", ""],
)  # fmt: skip
def test_other_names_are_not_guessed(name):
    """Nor are parts of a GPU, or the smaller one of a laptop that is called alike."""
    assert peak_of(name, "bf16") is None


def test_what_a_device_does_not_have_has_no_peak():
    assert peak_of("Tesla V100-SXM2-16GB", "bf16") is None
    assert peak_flops(torch.device("cpu"), "bf16") is None
