"""A run on a GPU, from images to a model that a CPU loads."""

import json

import pytest
import torch

from dinov2_hf import DINOv2Model
from tests.examples.conftest import fresh_accelerate, images, pretrain, recipe  # noqa: F401  (fixtures)


pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("augmentation", ["multi_crop", "device"])
def test_a_run_ends_and_leaves_a_model(pretrain, recipe, images, tmp_path, augmentation):  # noqa: F811
    output = tmp_path / "run"
    flags = ["--config", recipe, "--train_data", str(images), "--eval_data", str(images), "--output_dir", str(output)]
    pretrain.main([*flags, "--mixed_precision", "bf16", "--augmentation", augmentation])
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 6
    assert all(isinstance(loss, float) for loss in losses)  # null stands for what is not finite
    model = DINOv2Model.from_pretrained(output / "model").eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 3, 16, 16)).last_hidden_state.isfinite().all()
