"""The benchmark of a step runs on any recipe and writes its numbers."""

import json
import os
import sys

import pytest
import torch
from datasets import Dataset, Image

from tests.data.conftest import encode, noise_image

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


def test_data_path(tmp_path, monkeypatch):
    files = [{"bytes": encode(noise_image(seed, 60, 80), "JPEG"), "path": None} for seed in range(3)]
    images, output = tmp_path / "images.parquet", tmp_path / "data_path.json"
    Dataset.from_dict({"image": files}).cast_column("image", Image()).to_parquet(images)
    flags = ["--images", str(images), "--rounds", "1", "--large", "640", "480", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["data_path.py", *flags])
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        load_example("benchmarks/data_path").main()
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)
    results = json.loads(output.read_text())
    assert results["images"] == 3
    groups = results["milliseconds of CPU time an image"]
    assert list(groups) == ["paths", "pieces", "hand-over", "large, 640 x 480"]
    assert all(milliseconds > 0 for group in groups.values() for milliseconds in group.values())


def test_checkpoint_stall(recipe, tmp_path, monkeypatch, capsys):
    flags = ["--config", recipe, "--folder", str(tmp_path), "--times", "2"]
    monkeypatch.setattr(sys, "argv", ["checkpoint_stall.py", *flags])
    load_example("benchmarks/checkpoint_stall").main()
    numbers = json.loads(capsys.readouterr().out)
    assert 0 < numbers["seconds_waited"] < numbers["seconds_until_complete"]
    assert list(tmp_path.iterdir()) == []
