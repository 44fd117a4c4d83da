"""One-coloured borders of pictures, which copies often gain."""

import numpy as np
from PIL import Image


BORDER_SPREAD = 8  # grey levels by which pixels of a row of one colour vary, after compression
BORDER_DRIFT = 12  # grey levels by which a row may differ from the outermost one


def trim_borders(image: Image.Image) -> Image.Image:
    """The picture without rows and columns of one colour at its edges, unless little would be left of it."""
    small = image.copy()
    small.thumbnail((256, 256), reducing_gap=3.0)
    pixels = np.asarray(small, dtype=np.float32)
    height, width = pixels.shape[:2]
    across = pixels.swapaxes(0, 1)
    top, bottom = _border(pixels), _border(pixels[::-1])
    left, right = _border(across), _border(across[::-1])
    if top + bottom > 0.7 * height or left + right > 0.7 * width:
        return image
    x, y = image.width / width, image.height / height
    return image.crop(
        (round(left * x), round(top * y), image.width - round(right * x), image.height - round(bottom * y))
    )


def _border(lines: np.ndarray) -> int:
    """How many of the first lines (lines, pixels, 3) have one colour; usually the first line has several."""
    colour = lines[0].mean(axis=0)
    for number, line in enumerate(lines):
        if line.std(axis=0).max() >= BORDER_SPREAD or np.abs(line.mean(axis=0) - colour).max() >= BORDER_DRIFT:
            return number
    return len(lines)
