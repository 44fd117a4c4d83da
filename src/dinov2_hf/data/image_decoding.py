"""From the bytes of an image file to an upright 8-bit RGB picture, or to a reason why not."""

import io
import os
from collections.abc import Mapping
from typing import Any

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


class UndecodableImage(ValueError):
    """An image that cannot be turned into a picture; the message is the reason."""


def decode_image(value: Mapping[str, Any] | bytes | str | os.PathLike | Image.Image) -> Image.Image:
    """Decode one image to RGB, rotated upright by its EXIF orientation.

    Transparent images are composited on white. Of an animated image the first frame is taken. 16-bit grey is divided
    by 257, so that white stays white; 32-bit integers and floats are scaled by `_grey_to_8_bit`. CMYK and grey are
    converted by Pillow.

    Args:
        value: a mapping with `bytes` and `path` (a row of `datasets.Image(decode=False)`), of which `bytes` wins; the
            bytes of a file; a path or an fsspec URL; or an image that Pillow has opened, which is left as it is.

    Returns:
        A new image of mode "RGB".

    Raises:
        UndecodableImage: for a missing, empty or truncated file, for a file that is no image, and for an image so
            large that Pillow takes it for a decompression bomb.
    """
    # Decoders meet hostile bytes and raise nearly anything (OSError, SyntaxError, struct.error, IndexError, ...).
    try:
        image = value if isinstance(value, Image.Image) else Image.open(io.BytesIO(read_content(value)))
        image.load()
        return _to_upright_rgb(image)
    except UndecodableImage:
        raise
    except UnidentifiedImageError as error:
        raise UndecodableImage("the file is not an image in a format that Pillow knows") from error
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def read_content(value: Mapping[str, Any] | bytes | str | os.PathLike) -> bytes:
    """The bytes of an image file; `UndecodableImage` where there are none."""
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise UndecodableImage("the row holds no image")
    if isinstance(value, (str, os.PathLike)):
        # Rows of a streamed Hub data set name remote files, such as hf://datasets/...
        opened = fsspec.open(value, "rb") if "://" in str(value) else open(value, "rb")
        with opened as file:
            value = file.read()
    if len(value) == 0:
        raise UndecodableImage("the file is empty")
    return value


def turn_upright(image: Image.Image) -> Image.Image:
    """Rotated and mirrored as its EXIF orientation says; the image itself where it is upright."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    image = turn_upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_grey_to_8_bit(np.asarray(image)))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey_to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Scale a grey picture to 0..255 (uint8).

    The range is that of the type where the type says it (16 bit). 32-bit integers and floats do not say it, so it is
    the smallest of 1 (floats only), 255 and 65535 that holds all values, and otherwise the range of the values.
    """
    if grey.dtype.itemsize == 2:
        low, high = 0, 65535
    else:
        is_integer = grey.dtype.kind == "i"
        grey = np.nan_to_num(grey.astype(np.float64))
        low, high = grey.min(), grey.max()
        if low >= 0 and high <= 65535:
            low = 0
            high = 65535 if high > 255 else 255 if high > 1 or is_integer else 1
    return np.rint((grey - float(low)) * 255 / max(float(high - low), 1e-12)).astype(np.uint8)
