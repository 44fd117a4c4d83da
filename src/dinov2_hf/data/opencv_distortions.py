"""Distorts one crop on a CPU, with OpenCV.

Each operation is that of torchvision on 8-bit images, which rounds down to a whole grey level. Results are equal
within one level. Hue is equal within twelve levels, one on average, because its colour circle has 256 steps here, as
in Pillow.
"""

import cv2
import numpy as np

from .distortions import BLUR_RADIUS, GREY_WEIGHTS, JITTER_ORDERS, SOLARIZE_THRESHOLD, Distortion


# Crops are small, and threads of OpenCV do not survive the fork of a data loader's worker.
cv2.setNumThreads(0)

# Matrices from (red, green, blue, 1) to (red, green, blue).
_OWN = np.eye(3, 4)
_GREY = np.array([[*GREY_WEIGHTS, 0.0]] * 3)
_CONSTANT = np.array([[0.0, 0.0, 0.0, 1.0]] * 3)
_ROUND_DOWN = -0.4999  # added because OpenCV rounds to the nearest level
_SOLARIZED = np.arange(256, dtype=np.uint8)
_SOLARIZED[SOLARIZE_THRESHOLD:] = 255 - _SOLARIZED[SOLARIZE_THRESHOLD:]


def distort(crop: np.ndarray, distortion: Distortion, planes: np.ndarray) -> None:
    """Apply a distortion to one crop.

    Args:
        crop: uint8 of shape (height, width, 3).
        planes: the output, uint8 of shape (3, height, width).
    """
    if distortion.is_flipped:
        crop = cv2.flip(crop, 1)
    for name in JITTER_ORDERS[distortion.order] if distortion.is_jittered else ():
        crop = ADJUSTMENTS[name](crop, getattr(distortion, name))
    if distortion.is_grey:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if distortion.blur_sigma:
        crop = gaussian_blur(crop, distortion.blur_sigma)
    if distortion.is_solarized:
        crop = cv2.LUT(crop, _SOLARIZED)
    cv2.split(crop, list(planes))


def adjust_brightness(crop: np.ndarray, factor: float) -> np.ndarray:
    """Scale a crop, uint8 of shape (height, width, 3) as for the next functions."""
    return _blend(crop, factor, 0.0, 0.0)


def adjust_contrast(crop: np.ndarray, factor: float) -> np.ndarray:
    """Scale a crop about the mean of its grey picture."""
    mean = cv2.mean(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[0]
    return _blend(crop, factor, 0.0, (1 - factor) * mean)


def adjust_saturation(crop: np.ndarray, factor: float) -> np.ndarray:
    """Scale a crop about its grey picture."""
    return _blend(crop, factor, 1 - factor, 0.0)


def adjust_hue(crop: np.ndarray, shift: float) -> np.ndarray:
    """Rotate the hues of a crop, by a shift in turns of the colour circle."""
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(256 * shift) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


ADJUSTMENTS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def gaussian_blur(crop: np.ndarray, sigma: float) -> np.ndarray:
    """torchvision's 9 x 9 blur, with sigma in pixels. Edges are reflected."""
    kernel = cv2.getGaussianKernel(2 * BLUR_RADIUS + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(crop, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def _blend(crop: np.ndarray, own: float, grey: float, constant: float) -> np.ndarray:
    """The sum of `own` times the crop, `grey` times its grey picture, and a constant."""
    return cv2.transform(crop, own * _OWN + grey * _GREY + (constant + _ROUND_DOWN) * _CONSTANT)
