"""The evaluation script, on a model that a run made."""

import json
import sys

import pytest

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model

from .conftest import load_example


@pytest.mark.parametrize("flags", [[], ["--untrained"], ["--pixels"]])
def test_knn_of_model_untrained_and_pixels(tmp_path, images, tiny_config, monkeypatch, capsys, flags):
    DINOv2Model(tiny_config).save_pretrained(tmp_path)
    DINOv2ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    data = ["--bank_data", str(images), "--eval_data", str(images), "--eval_split", "train", "--k", "1", "5"]
    output = ["--output", str(tmp_path / "knn.json")]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", str(tmp_path), *data, *output, *flags])
    load_example("evaluate").main()
    accuracies = json.loads((tmp_path / "knn.json").read_text())
    assert set(accuracies) == {"knn_top1_k1", "knn_top1_k5"}
    assert accuracies["knn_top1_k1"] == 1.0  # every image finds itself
    assert "knn_top1_k1      1.0000" in capsys.readouterr().out
