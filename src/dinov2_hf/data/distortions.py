"""Distortions of a crop after it is cut out: flip, colour jitter, greyscale, blur and solarize (DINOv2, appendix B).

This module draws the numbers. `opencv_distortions` applies them to one crop on a CPU, and `batched_distortions` to all
crops of a batch on their device.
"""

import itertools
import random
from typing import NamedTuple


BRIGHTNESS_FACTOR = (0.6, 1.4)
CONTRAST_FACTOR = (0.6, 1.4)
SATURATION_FACTOR = (0.8, 1.2)
HUE_SHIFT = (-0.1, 0.1)
BLUR_SIGMA = (0.1, 2.0)
BLUR_RADIUS = 4
SOLARIZE_THRESHOLD = 128
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue
JITTER_ORDERS = tuple(itertools.permutations(("brightness", "contrast", "saturation", "hue")))


class Distortion(NamedTuple):
    """The numbers of one crop. The defaults change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # in turns of the colour circle
    order: int = 0  # of these four: one of `JITTER_ORDERS`
    is_jittered: bool = False
    is_flipped: bool = False
    is_grey: bool = False
    blur_sigma: float = 0.0  # in pixels; 0: no blur
    is_solarized: bool = False


UNDISTORTED = Distortion()


def draw_distortion(
    rng: random.Random,
    *,
    flip_probability: float,
    jitter_probability: float,
    grey_probability: float,
    blur_probability: float,
    solarize_probability: float,
) -> Distortion:
    """Draw the numbers of one crop. The number of draws does not depend on the probabilities."""
    is_flipped = rng.random() < flip_probability
    is_jittered = rng.random() < jitter_probability
    brightness = rng.uniform(*BRIGHTNESS_FACTOR)
    contrast = rng.uniform(*CONTRAST_FACTOR)
    saturation = rng.uniform(*SATURATION_FACTOR)
    hue = rng.uniform(*HUE_SHIFT)
    order = int(rng.random() * len(JITTER_ORDERS))
    is_grey = rng.random() < grey_probability
    is_blurred = rng.random() < blur_probability
    sigma = rng.uniform(*BLUR_SIGMA)
    is_solarized = rng.random() < solarize_probability
    jitter = (brightness, contrast, saturation, hue, order, True) if is_jittered else UNDISTORTED[:6]
    return Distortion(*jitter, is_flipped, is_grey, sigma if is_blurred else 0.0, is_solarized)
