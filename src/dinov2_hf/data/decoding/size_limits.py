"""Limits for the size of an image. The size in the header of a file is checked before any memory is allocated.

A file of 200 bytes can claim to have 20000 x 20000 pixels, and a strip of 20000 x 1 becomes 5 million x 256 when its
short side is resized. Neither should stop a run, so such an image counts as one that cannot be decoded.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .undecodable import UndecodableImage


# Pillow's own defaults also refuse an image with more pixels (twice `PIL.Image.MAX_IMAGE_PIXELS`).
DEFAULT_MAX_IMAGE_PIXELS = 178_956_970
# Numbers for each allowed pixel: those of an image with transparency.
NUMBERS_PER_PIXEL = 4
# Bytes for each allowed pixel: those of an uncompressed file of 4 channels of floats.
BYTES_PER_PIXEL = 16
MAX_ASPECT_RATIO = 100
# Hyperspectral cameras have some 500.
MAX_CHANNELS = 1024
# The environment variable of the limit: processes inherit it, however they are started.
VARIABLE = "DINOV2_HF_MAX_IMAGE_PIXELS"


def max_image_pixels() -> int:
    """The largest number of pixels that an image may have in this process."""
    return int(os.environ.get(VARIABLE, DEFAULT_MAX_IMAGE_PIXELS))


def set_max_image_pixels(value: int | None) -> None:
    """Set the largest number of pixels that an image may have, in this process and in those that it starts.

    Args:
        value: height times width. None: leave the limit as it is.

    Raises:
        ValueError: it is not positive.
    """
    if value is None:
        return
    if value < 1:
        raise ValueError(f"`--max_image_pixels` is {value}, but it must be at least 1.")
    os.environ[VARIABLE] = str(value)


@contextmanager
def own_max_image_pixels() -> Iterator[None]:
    """Restore the limit of pixels at the end of the block, if the block has changed it."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def check_size(width: int, height: int, num_channels: int = 1) -> None:
    """Check the size of an image before its pixels are read.

    Args:
        width, height: in pixels.
        num_channels: bands or pages.

    Raises:
        UndecodableImage: it has no pixels, too many pixels or channels, or is too long for its width.
    """
    size, limit = f"{width} x {height} pixels", max_image_pixels()
    if width < 1 or height < 1:
        raise UndecodableImage(f"it has {size}, that is, none")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UndecodableImage(f"it has {size}, and one side may be at most {MAX_ASPECT_RATIO} times the other")
    if width * height > limit:
        raise UndecodableImage(f"it has {size}, more than the {limit} that `--max_image_pixels` allows")
    if num_channels > MAX_CHANNELS:
        raise UndecodableImage(f"it has {num_channels} channels or pages, more than the {MAX_CHANNELS} allowed")
    if width * height * num_channels > NUMBERS_PER_PIXEL * limit:
        raise UndecodableImage(
            f"it has {size} in {num_channels} channels, more than {NUMBERS_PER_PIXEL} times the {limit} numbers that"
            " `--max_image_pixels` allows"
        )


def check_file_size(num_bytes: int) -> None:
    """`UndecodableImage` for a file that is larger than any image with the allowed number of pixels."""
    limit = BYTES_PER_PIXEL * max_image_pixels()
    if num_bytes > limit:
        raise UndecodableImage(
            f"the file has {num_bytes} bytes, more than {limit}, which is {BYTES_PER_PIXEL} for each pixel that"
            " `--max_image_pixels` allows"
        )
