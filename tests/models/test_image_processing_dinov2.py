"""The image processor: the original's evaluation transform, by default and after a reload."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor

from dinov2_hf import DINOv2ImageProcessor


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_defaults_are_the_originals():
    processor = DINOv2ImageProcessor()
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    assert processor.size["shortest_edge"] == 256
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (224, 224)
    assert processor.resample == 3  # bicubic


def test_equals_the_stock_processor_of_released_checkpoints(image):
    stock = BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    ours = DINOv2ImageProcessor()(images=[image], return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 3, 224, 224)
    assert torch.equal(ours, stock(images=[image], return_tensors="pt")["pixel_values"])


def test_saved_settings_come_back(tmp_path, image):
    processor = DINOv2ImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is DINOv2ImageProcessor
    one, other = (p(images=[image.convert("L")], return_tensors="pt")["pixel_values"] for p in (processor, loaded))
    assert one.shape == (1, 3, 32, 32)
    assert torch.equal(one, other)
