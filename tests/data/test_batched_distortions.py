"""A batch on its device against one crop at a time by OpenCV, and against torchvision on floats."""

import random

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from dinov2_hf.data import opencv_distortions
from dinov2_hf.data.batched_distortions import adjust_hue, distort_batch, gaussian_blur
from dinov2_hf.data.distortions import JITTER_ORDERS, Distortion, draw_distortion
from tests.data.conftest import noise_image


ALWAYS = dict.fromkeys(("flip", "jitter", "grey", "blur", "solarize"), 0.0)


def drawn(num_crops: int, **probabilities: float) -> list[Distortion]:
    rng = random.Random(0)
    named = {f"{name}_probability": value for name, value in (ALWAYS | probabilities).items()}
    return [draw_distortion(rng, **named) for _ in range(num_crops)]


def smooth_crops(num_crops: int, size: int = 40) -> np.ndarray:
    pictures = [noise_image(seed, 10, 10).resize((size, size), 3) for seed in range(num_crops)]
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.mark.parametrize(
    "probabilities",
    [{}, {"flip": 0.5}, {"jitter": 0.8}, {"grey": 0.5}, {"blur": 0.5}, {"solarize": 0.5}, dict.fromkeys(ALWAYS, 0.5)],
    ids=lambda probabilities: " ".join(probabilities) or "nothing",
)
def test_a_batch_is_distorted_like_its_crops(probabilities):
    crops = smooth_crops(60)
    distortions = drawn(len(crops), **probabilities)
    if "jitter" in probabilities:
        assert len({distortion.order for distortion in distortions if distortion.is_jittered}) > 15
    expected = np.empty((len(crops), 3, 40, 40), np.uint8)
    for crop, distortion, planes in zip(crops, distortions, expected, strict=True):
        opencv_distortions.distort(crop, distortion, planes)
    batch = torch.from_numpy(crops).permute(0, 3, 1, 2)
    found = distort_batch(batch, torch.tensor(distortions))
    assert found.dtype == torch.float32
    difference = found - torch.from_numpy(expected)
    # OpenCV's hue has 8 bits, which brightness and contrast then scale.
    assert difference.abs().max() <= (25 if "jitter" in probabilities else 1)
    assert difference.abs().mean() < 1
    assert abs(difference.mean()) < 0.3
    assert torch.equal(batch, torch.from_numpy(crops).permute(0, 3, 1, 2))  # in memory of its own


@pytest.mark.parametrize("order", range(len(JITTER_ORDERS)))
def test_every_order_is_that_of_torchvision(order):
    crops = torch.from_numpy(smooth_crops(3)).permute(0, 3, 1, 2)
    numbers = {"brightness": 1.3, "contrast": 0.7, "saturation": 0.85, "hue": -0.08}
    found = distort_batch(crops, torch.tensor([Distortion(**numbers, order=order, is_jittered=True)] * 3))
    for name in JITTER_ORDERS[order]:
        crops = getattr(F, f"adjust_{name}")(crops, numbers[name])
    difference = found - crops
    assert difference.abs().max() <= 6  # of rounding to 8 bits from step to step
    assert abs(difference.mean()) < 0.4


def test_hue_is_that_of_torchvision():
    crops = torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    crops[0, :, :5] = 0.5  # grey has no hue
    shifts = torch.tensor([-0.1, -0.03, 0.0, 0.05, 0.1])
    expected = torch.stack([F.adjust_hue(crop, float(shift)) for crop, shift in zip(crops, shifts, strict=True)])
    torch.testing.assert_close(adjust_hue(255 * crops, shifts) / 255, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [5, 13, 40])
def test_blur_is_that_of_torchvision(size):
    crops = torch.rand(4, 2, size, size, generator=torch.Generator().manual_seed(0))
    sigmas = [0.1, 0.6, 1.3, 2.0]
    expected = [F.gaussian_blur(crop, [9, 9], [sigma] * 2) for crop, sigma in zip(crops, sigmas, strict=True)]
    torch.testing.assert_close(gaussian_blur(crops, torch.tensor(sigmas)), torch.stack(expected))


def test_no_crops():
    assert distort_batch(torch.zeros(0, 3, 8, 8), torch.zeros(0, len(Distortion._fields))).shape == (0, 3, 8, 8)


def test_nothing_is_read_from_the_device():
    """A device without memory stands for one that is still computing: reading a number of it is an error."""
    crops = torch.empty(60, 3, 32, 32, dtype=torch.uint8, device="meta")
    found = distort_batch(crops, torch.tensor(drawn(60, **dict.fromkeys(ALWAYS, 0.5))))
    assert (found.shape, found.dtype, found.device) == (crops.shape, torch.float32, crops.device)
