"""Every operation against torchvision's, on 8-bit tensors and on PIL images as the original has it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dinov2_hf.data import opencv_distortions as ours
from dinov2_hf.data.distortions import Distortion


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    """Noise of all frequencies, and patches of one colour, some of them grey, black and white."""
    rng = np.random.default_rng(0)
    noise = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((48, 48), Image.BICUBIC))
        for n in (3, 12, 48)
    ]
    colours = rng.integers(0, 256, (4, 12, 3), dtype=np.uint8)
    colours[0, :3] = [[0], [128], [255]]
    return np.concatenate([*noise, colours.repeat(12, axis=0).repeat(4, axis=1)], axis=1)


def on_tensor(operation, crop, *values):
    return operation(torch.tensor(crop).permute(2, 0, 1), *values).permute(1, 2, 0).numpy()


def on_picture(operation, crop, *values):
    return np.asarray(operation(Image.fromarray(crop), *values))


@pytest.mark.parametrize("reference", [on_tensor, on_picture])
@pytest.mark.parametrize(
    ("operation", "expected", "values"),
    [
        (ours.adjust_brightness, F.adjust_brightness, (0.6, 0.97, 1.0, 1.21, 1.4)),
        (ours.adjust_contrast, F.adjust_contrast, (0.6, 0.97, 1.0, 1.21, 1.4)),
        (ours.adjust_saturation, F.adjust_saturation, (0.8, 0.97, 1.0, 1.2)),
    ],
)
def test_colours_are_within_one_grey_level(crop, operation, expected, values, reference):
    for value in values:
        difference = operation(crop, value).astype(int) - reference(expected, crop, value)
        assert np.abs(difference).max() <= 1
        assert abs(difference.mean()) < 0.3


@pytest.mark.parametrize("shift", [-0.1, -0.04, 0.0, 0.03, 0.1])
def test_hue_is_within_twelve_grey_levels(crop, shift):
    """And within one on average; Pillow's, whose colour circle has 256 steps too, is no nearer to that of floats."""
    floats = on_tensor(F.adjust_hue, crop, shift)
    difference = ours.adjust_hue(crop, shift).astype(int) - floats
    assert np.abs(difference).max() <= 12
    assert np.abs(difference).mean() < 1
    assert abs(difference.mean()) < 0.2
    of_pillow = on_picture(F.adjust_hue, crop, shift).astype(int) - floats
    assert difference.std() < 2 * of_pillow.std()


@pytest.mark.parametrize("sigma", [0.1, 0.6, 1.3, 2.0])
def test_blur_is_within_one_grey_level(crop, sigma):
    difference = ours.gaussian_blur(crop, sigma).astype(int) - on_tensor(F.gaussian_blur, crop, [9, 9], [sigma] * 2)
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.01


def distorted(crop, **numbers):
    planes = np.empty((3, *crop.shape[:2]), np.uint8)
    ours.distort(crop, Distortion(**numbers), planes)
    return planes.transpose(1, 2, 0)


def test_flip_greyscale_and_solarize(crop):
    before = crop.copy()
    assert np.array_equal(distorted(crop), crop)
    assert np.array_equal(distorted(crop, is_flipped=True), on_tensor(F.horizontal_flip, crop))
    assert np.array_equal(distorted(crop, is_solarized=True), on_tensor(F.solarize, crop, 128))
    grey = distorted(crop, is_grey=True).astype(int)
    assert np.abs(grey - on_picture(F.rgb_to_grayscale, crop, 3)).max() <= 1
    assert np.array_equal(crop, before)


def test_all_at_once_come_in_the_order_of_the_original(crop):
    numbers = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.1, "hue": 0.05}
    found = distorted(
        crop, **numbers, order=0, is_jittered=True, is_flipped=True, is_grey=True, blur_sigma=1.5, is_solarized=True
    )
    expected = on_tensor(F.horizontal_flip, crop)
    for name, value in numbers.items():
        expected = on_tensor(getattr(F, f"adjust_{name}"), expected, value)
    expected = on_tensor(F.rgb_to_grayscale, expected, 3)
    expected = on_tensor(F.gaussian_blur, expected, [9, 9], [1.5, 1.5])
    # Where a level next to 128 is inverted, and its neighbour is not, they meet again within one level.
    difference = np.abs(found.astype(int) - on_tensor(F.solarize, expected, 128))
    assert difference.max() <= 4
    assert difference.mean() < 1
