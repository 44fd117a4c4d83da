"""The image processor: the original's evaluation transform, by default and after a reload."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoImageProcessor, BitImageProcessor

from dinov2_hf import DINOv2ImageProcessor, DINOv2ImageProcessorPil


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
def test_defaults_are_the_originals(processor_class):
    processor = processor_class()
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


@pytest.mark.parametrize("size", [(90, 60), (300, 257), (256, 256), (640, 480)])
def test_pil_does_the_originals_transform(size):
    """Resize(256, bicubic), CenterCrop(224), ToTensor, Normalize, on PIL images as the original runs it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    original = v2.Compose([
        v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    pixels = DINOv2ImageProcessorPil()(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(pixels, original(image), atol=1e-5, rtol=1e-5)
    # Torchvision resizes tensors; after rounding to grey levels the two differ by one of them.
    fast = DINOv2ImageProcessor()(images=image, return_tensors="pt")["pixel_values"][0]
    assert (fast - pixels).abs().max() < 1.01 / 255 / 0.224


@pytest.mark.parametrize(
    ("backend", "expected"), [("torchvision", DINOv2ImageProcessor), ("pil", DINOv2ImageProcessorPil)]
)
def test_either_backend_reads_the_files_of_both(tmp_path, backend, expected):
    for processor in (DINOv2ImageProcessor(crop_size=32), DINOv2ImageProcessorPil(crop_size=32)):
        processor.save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is expected
        assert loaded.crop_size == {"height": 32, "width": 32}
