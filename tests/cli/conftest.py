"""A model that the commands are given."""

import pytest

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model


@pytest.fixture
def folder(tmp_path, tiny_config, spread):
    spread(DINOv2Model(tiny_config)).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"
