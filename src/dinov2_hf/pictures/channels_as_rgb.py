"""Images of any number of channels, as pictures."""

import numpy as np
from PIL import Image


def rgb_picture(pixels: np.ndarray, low: float | np.ndarray = 0.0, high: float | np.ndarray = 255.0) -> Image.Image:
    """The first three channels, or the first one as grey.

    Args:
        pixels: (height, width, channels).
        low, high: what is black and what is white; a number, or one for each channel.
    """
    channels = [0, 1, 2] if pixels.shape[2] > 2 else [0, 0, 0]
    low, high = (np.broadcast_to(limit, pixels.shape[2:])[channels] for limit in (low, high))
    shares = (pixels[..., channels] - low) / np.maximum(high - low, 1e-12)
    return Image.fromarray(np.rint(shares.clip(0, 1) * 255).astype(np.uint8))
