"""Images of any number of channels, such as grey medical ones and multi-band TIFF files of satellites."""

import io
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .image_decoding import UndecodableImage, decode_image, read_content, turn_upright


TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
NPY_BEGINNING = b"\x93NUMPY"


def image_decoder(num_channels: int) -> Callable[[Any], Image.Image | np.ndarray]:
    """`decode_image` for 3 channels, `decode_channels` for any other number."""
    return decode_image if num_channels == 3 else partial(decode_channels, num_channels=num_channels)


def decode_channels(
    value: Mapping[str, Any] | bytes | str | os.PathLike | Image.Image, num_channels: int
) -> np.ndarray:
    """Decode one image to an array of `num_channels` channels, without rounding it to 8 bits.

    Values are on the scale of 8-bit images, 0 to 255, so that `image_mean` and `image_std` mean the same for all:
    other integers are divided by the largest of their type (16 bit: 65535) and floats are taken as fractions of 1,
    both then times 255. Nothing is clipped, and no scale depends on the content of an image.

    TIFF files of several bands, interleaved, in planes or in pages, are read by tifffile (the extra `multiband`),
    `.npy` files (height, width[, channels]) by numpy, and all others by Pillow, which turns colour into grey for 1
    channel.

    Args:
        value: as in `decode_image`.
        num_channels: wanted channels.

    Returns:
        float32 of shape (height, width, num_channels).

    Raises:
        UndecodableImage: as `decode_image`, and for another number of channels.
        ValueError: for a TIFF file of several bands without tifffile.
    """
    try:
        if isinstance(value, Image.Image):
            return _from_pillow(value, num_channels)
        content = read_content(value)
        if content.startswith(NPY_BEGINNING):
            array = np.load(io.BytesIO(content), allow_pickle=False)
            return _scaled(array[..., None] if array.ndim == 2 else array, num_channels)
        if content.startswith(TIFF_BEGINNINGS) and num_channels > 1:
            return _scaled(_read_tiff(content), num_channels)
        return _from_pillow(Image.open(io.BytesIO(content)), num_channels)
    except (UndecodableImage, MissingTiffReader):
        raise
    except Exception as error:  # as in `decode_image`
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


class MissingTiffReader(ValueError):
    """Not a fault of the image: every other one would fail too."""


def _from_pillow(image: Image.Image, num_channels: int) -> np.ndarray:
    image.load()
    image = turn_upright(image)
    if num_channels > 1:
        return _scaled(np.asarray(image), num_channels)
    if image.mode.startswith("I;16") or image.mode == "F":
        return _scaled(np.asarray(image)[..., None], 1)
    if image.mode == "I":  # 16 bits in a wider type, as Pillow reads some files of 16 bits
        return _scaled(np.asarray(image)[..., None] / np.float32(65535), 1)
    return _scaled(np.asarray(image.convert("L"))[..., None], 1)


def _read_tiff(content: bytes) -> np.ndarray:
    """(height, width, bands), in the numbers of the file."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingTiffReader(
            "TIFF files of several bands need tifffile, which is not installed: pip install dinov2_hf[multiband]."
        ) from error
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        array, axes = series.asarray(), series.axes
    if sorted(axes) != sorted(set(axes)) or not {"Y", "X"} <= set(axes) or len(axes) > 3:
        raise UndecodableImage(f"it has the axes {axes} of shape {array.shape}, not height, width and channels")
    if len(axes) == 2:
        return array[..., None]
    (band,) = set(axes) - {"Y", "X"}
    return array.transpose(axes.index("Y"), axes.index("X"), axes.index(band))


def _scaled(array: np.ndarray, num_channels: int) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != num_channels:
        raise UndecodableImage(f"it has shape {array.shape}, not (height, width, {num_channels})")
    if array.dtype.kind not in "uif" or array.size == 0:
        raise UndecodableImage(f"it holds {array.size} numbers of type {array.dtype}")
    largest = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    return array.astype(np.float32) * np.float32(255 / largest)
