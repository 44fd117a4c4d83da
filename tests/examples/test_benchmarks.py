"""The benchmark of a step runs on any recipe and writes its numbers."""

import json
import sys

import pytest

from .conftest import load_example


def test_pretraining_step(recipe, images, tmp_path, monkeypatch):
    output = tmp_path / "step.json"
    flags = ["--config", recipe, "--train_data", str(images), "--steps", "2", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["pretraining_step.py", *flags, "--variants", "packed-no", "separate-no"])
    load_example("benchmarks/pretraining_step").main()
    results = json.loads(output.read_text())
    assert set(results["variants"]) == {"packed-no", "separate-no"}
    for variant in results["variants"].values():
        assert variant["images_per_second"] > 0
        assert sum(variant["share_of_step"].values()) == pytest.approx(1)
        assert set(variant["share_of_step"]) == {"backbone", "heads", "losses", "backward", "update"}
    assert results["peak_memory_gib"] > 0
    assert results["data"]["seconds_per_batch_over_seconds_per_step"]["packed-no"] > 0


def test_a_step_under_a_backend(recipe, tmp_path, monkeypatch):
    """Two processes of FSDP2; memory is told for each."""
    output = tmp_path / "step.json"
    flags = ["--config", recipe, "--steps", "1", "--output", str(output), "--backend", "fsdp2", "--processes", "2"]
    monkeypatch.setattr(sys, "argv", ["pretraining_step.py", *flags])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    load_example("benchmarks/pretraining_step").main()
    (result,) = json.loads(output.read_text())["backends"]
    assert result["backend"] == "fsdp2"
    assert result["processes"] == 2
    assert result["images_per_second"] > 0
    assert len(result["peak_memory_gib_per_process"]) == 2
