"""Choices of precision and attention, and means over processes."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from dinov2_hf.training.processes.distributed import (
    choose_attention,
    choose_mixed_precision,
    cpu_supports_bfloat16,
    mean_over_processes,
    precision_in_words,
)


@pytest.mark.parametrize(
    ("requested", "launched", "expected"),
    [
        ("no", "bf16", "no"), ("bf16", "no", "bf16"), ("fp16", "", "fp16"), ("auto", "bf16", "bf16"),
        ("auto", "no", "bf16" if cpu_supports_bfloat16() else "no"),
    ],
)  # fmt: skip
def test_precision(requested, launched, expected):
    assert choose_mixed_precision(requested, launched, use_cpu=True) == expected


@pytest.mark.parametrize(
    ("major", "is_sharded", "expected", "said"),
    [
        (9, False, "bf16", "bf16"),
        (8, True, "bf16", "bf16"),
        (7, False, "fp16", "fp16, since this GPU would emulate bf16"),
        (7, True, "no", "no"),
    ],
)
def test_precision_of_gpus(monkeypatch, major, is_sharded, expected, said):
    """By the major number of their compute capability: 7 is V100, T4 and RTX 20."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
    assert choose_mixed_precision("auto", "no", use_cpu=False, is_sharded=is_sharded) == expected
    assert precision_in_words(expected, "cuda") == said
    emulated = precision_in_words("bf16", "cuda")
    assert emulated == "bf16" if major >= 8 else "which this device emulates slowly" in emulated


def test_attention():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_attention("auto", "bf16", cpu) == "eager"
    assert choose_attention("auto", "no", cpu) == "sdpa"
    assert choose_attention("auto", "bf16", gpu) == "sdpa"
    assert choose_attention("flex_attention", "bf16", cpu) == "flex_attention"


def test_mean_of_one_process_is_the_value():
    values, alike = {"loss": torch.tensor(1.5), "koleo": torch.tensor(-0.5)}, {"grad_norm": torch.tensor(2.0)}
    means = mean_over_processes(Accelerator(cpu=True), values, alike)
    assert means == {"loss": 1.5, "koleo": -0.5, "grad_norm": 2.0}
