import numpy as np
import pytest

from dinov2_hf.pictures.channels_as_rgb import rgb_picture


@pytest.mark.parametrize(("num_channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_three_channels_are_shown_or_the_first_as_grey(num_channels, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, num_channels), dtype=np.uint8)
    assert (np.asarray(rgb_picture(pixels)) == pixels[..., shown]).all()


def test_values_are_stretched_from_black_to_white():
    pixels = np.array([[[-1.0, 0.0, 5.0], [1.0, 2.0, 5.0], [0.0, 9.0, 5.0]]])
    picture = rgb_picture(pixels, np.array([-1.0, 0.0, 5.0]), np.array([1.0, 2.0, 5.0]))
    assert np.asarray(picture).tolist() == [[[0, 0, 0], [255, 255, 0], [128, 255, 0]]]
