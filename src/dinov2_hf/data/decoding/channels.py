"""Images with any number of channels, such as grey medical images and multi-band TIFF files of satellites."""

import io
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .file_content import read_content
from .rgb import Reduction, decode_image, load_pixels, open_image, turn_upright
from .size_limits import check_size
from .tiff import TIFF_BEGINNINGS, read_tiff
from .undecodable import UndecodableImage, undecodable_on_error


NPY_BEGINNING = b"\x93NUMPY"
# Fractions of 1 may exceed it (reflectance at noon, standardised scans), but not by this much.
LARGEST_FRACTION = 16


def image_decoder(num_channels: int, reduction: Reduction | None = None) -> Callable[[Any], Image.Image | np.ndarray]:
    """`decode_image` with its reduction for 3 channels; `decode_channels` for any other number."""
    if num_channels == 3:
        return partial(decode_image, reduction=reduction) if reduction else decode_image
    return partial(decode_channels, num_channels=num_channels)


def decode_channels(
    value: Mapping[str, Any] | bytes | str | os.PathLike | Image.Image, num_channels: int
) -> np.ndarray:
    """Decode one image to an array of `num_channels` channels, without rounding it to 8 bits.

    Values are on the scale of 8-bit images, 0 to 255, so that `image_mean` and `image_std` mean the same for all.
    Other integers are divided by the largest value of their type (16 bit: 65535) and floats are taken as fractions of
    1; both are then multiplied by 255. Nothing is clipped, and no scale depends on the content of an image.

    TIFF files of several bands, interleaved, in planes or in pages, are read by tifffile (the extra `multiband`),
    `.npy` files (height, width[, channels]) by numpy, and all others by Pillow, which turns colour into grey for 1
    channel.

    Args:
        value: as in `decode_image`.
        num_channels: wanted channels.

    Returns:
        float32 of shape (height, width, num_channels).

    Raises:
        UndecodableImage: as `decode_image`, and for another number of channels, for NaN or infinite numbers, and for
            floats beyond 16, which are not fractions of 1 but on another scale, such as 0 to 255.
        ValueError: for a TIFF file of several bands without tifffile.
    """
    with undecodable_on_error():
        if isinstance(value, Image.Image):
            return _from_pillow(load_pixels(value), num_channels)
        content = read_content(value)
        if content.startswith(NPY_BEGINNING):
            array = read_npy(content)
            return _scaled(array[..., None] if array.ndim == 2 else array, num_channels)
        if content.startswith(TIFF_BEGINNINGS) and num_channels > 1:
            return _scaled(read_tiff(content), num_channels)
        return _from_pillow(open_image(content), num_channels)


def _from_pillow(image: Image.Image, num_channels: int) -> np.ndarray:
    image = turn_upright(image)
    if num_channels > 1:
        return _scaled(np.asarray(image), num_channels)
    if image.mode.startswith("I;16") or image.mode == "F":
        return _scaled(np.asarray(image)[..., None], 1)
    if image.mode == "I":  # 16 bits in a wider type, as Pillow reads some 16-bit files
        return _scaled(np.asarray(image)[..., None] / np.float32(65535), 1)
    return _scaled(np.asarray(image.convert("L"))[..., None], 1)


def read_npy(content: bytes) -> np.ndarray:
    """The array of a `.npy` file. Its header is checked before its numbers are read.

    Args:
        content: the bytes of the file, which begin with `NPY_BEGINNING`.

    Returns:
        An array of numbers with 2 or 3 dimensions.

    Raises:
        UndecodableImage: it has another shape or type, exceeds the limits of `size_limits`, or is cut short.
    """
    file = io.BytesIO(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in read_header:
        raise UndecodableImage(f"it is a NumPy file of version {version}, and only 1.0 and 2.0 are read")
    shape, _, dtype = read_header[version](file)
    if dtype.kind not in "uif":
        raise UndecodableImage(f"it holds numbers of type {dtype}, not integers or floats")
    if len(shape) not in (2, 3):
        raise UndecodableImage(f"it has shape {shape}, not (height, width[, channels])")
    check_size(shape[1], shape[0], *shape[2:])
    if len(content) - file.tell() < math.prod(shape) * dtype.itemsize:
        raise UndecodableImage(f"it has shape {shape}, for which the file is too short")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _scaled(array: np.ndarray, num_channels: int) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != num_channels:
        raise UndecodableImage(f"it has shape {array.shape}, not (height, width, {num_channels})")
    if array.dtype.kind not in "uif" or array.size == 0:
        raise UndecodableImage(f"it holds {array.size} numbers of type {array.dtype}")
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UndecodableImage("it holds NaN or infinite numbers; fill them in before")
        if max(-low, high) > LARGEST_FRACTION:
            raise UndecodableImage(
                f"it holds floats from {low:g} to {high:g}, but floats are taken as fractions of 1; divide them by the"
                " largest value of their scale, or store integers"
            )
    largest = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    return array.astype(np.float32) * np.float32(255 / largest)
