"""Crops of arrays against those of pictures, where both exist, and channel by channel."""

import numpy as np
import pytest
import torch

from dinov2_hf.data import MultiCropTransform
from tests.data.conftest import noise_image, normalised_crops


def transform(num_channels: int, **settings) -> MultiCropTransform:
    sizes = {"global_crop_size": 16, "local_crop_size": 8, "num_local_crops": 2, "num_channels": num_channels}
    normalisation = {"image_mean": [0.5] * num_channels, "image_std": [0.25] * num_channels}
    return MultiCropTransform(**sizes | normalisation | settings)


def crops(num_channels: int, image, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    return normalised_crops(transform(num_channels, **settings), image, seed=3)


WITHOUT_COLOUR = {"color_jitter_probability": 0.0, "grayscale_probability": 0.0, "solarize_probability": 0.0}


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_an_array_is_cropped_like_a_picture(blur):
    """The red channel of a picture as an array of one channel; a picture is rounded to 8 bits twice."""
    picture = noise_image(0, 40, 48).resize((96, 80))
    settings = WITHOUT_COLOUR | {"global_blur_probabilities": (blur, blur), "local_blur_probability": blur}
    expected = crops(3, picture, **settings)
    found = crops(1, np.asarray(picture, dtype=np.float32)[..., :1].copy(), **settings)
    for one, other in zip(found, expected, strict=True):
        assert one.shape[1] == 1
        difference = (one[:, 0] - other[:, 0]).abs() * 0.25 * 255
        assert difference.median() < 1
        assert difference.quantile(0.99) < 3  # bicubic overshoot is clipped in a picture only


def test_channels_do_not_mix_and_all_are_kept():
    array = np.random.default_rng(0).uniform(0, 255, (30, 40, 6)).astype(np.float32)
    together = crops(6, array)
    for channel in range(6):
        alone = crops(1, array[..., channel : channel + 1].copy())
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[:, channel], other[:, 0], atol=1e-5, rtol=1e-5)


def test_colour_is_left_alone_whatever_its_probabilities():
    array = np.random.default_rng(0).uniform(0, 255, (30, 40, 4)).astype(np.float32)
    always = dict.fromkeys(WITHOUT_COLOUR, 1.0)
    for one, other in zip(crops(4, array, **always), crops(4, array, **WITHOUT_COLOUR), strict=True):
        assert torch.equal(one, other)


def test_values_are_not_rounded_to_8_bits():
    """A constant below one step of 8 bits survives cropping, blur and normalisation."""
    array = np.full((30, 40, 2), 0.3, dtype=np.float32)
    for crop in crops(2, array, global_blur_probabilities=(1.0, 1.0)):
        torch.testing.assert_close(crop, torch.full_like(crop, (0.3 / 255 - 0.5) / 0.25))


def test_no_local_crops():
    array = np.zeros((30, 40, 2), dtype=np.float32)
    assert [len(kind) for kind in crops(2, array, num_local_crops=0)] == [2, 0]


@pytest.mark.parametrize("settings", [{"image_mean": [0.5] * 3}, {"image_std": [0.2] * 4}, {"image_std": [0.2, 0.0]}])
def test_normalisation_must_fit(settings):
    with pytest.raises(ValueError, match="num_channels is 2: each must be so many numbers"):
        transform(2, **settings)
