"""Decodes the bytes of an image file to an upright 8-bit RGB picture, or gives the reason why it cannot.

All decoding is done here, for training, features, evaluation, curation, the image processors and the pipelines.
"""

import io
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .file_content import read_content
from .size_limits import check_size, max_image_pixels
from .undecodable import UndecodableImage, undecodable_on_error


# No other decoder of Pillow is used, whatever the name of a file: some of them run programs (EPS: Ghostscript).
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
Reduction = Callable[[int, int], int]


def decode_image(
    value: Mapping[str, Any] | bytes | str | os.PathLike | Image.Image, *, reduction: Reduction | None = None
) -> Image.Image:
    """Decode one image to RGB, rotated upright by its EXIF orientation.

    Transparent images are composited on white. The first frame of an animated image is used. 16-bit grey is divided by
    257, so that white stays white. `_grey_to_8_bit` scales 32-bit integers and floats. Pillow converts CMYK and grey.

    Args:
        value: a mapping with `bytes` and `path` (a row of `datasets.Image(decode=False)`), where `bytes` has priority;
            the bytes of a file; a path or an fsspec URL; or an image that Pillow has opened, which is not changed.
        reduction: for a width and a height, the factor by which a JPEG file may be decoded smaller (1, 2, 4 or 8),
            which takes less time. None: full size.

    Returns:
        A new image of mode "RGB".

    Raises:
        UndecodableImage: for a missing, empty or truncated file, for a file that is not an image of `IMAGE_FORMATS`,
            and for an image that exceeds the limits of `size_limits`.
    """
    with undecodable_on_error():
        image = load_pixels(value) if isinstance(value, Image.Image) else open_image(read_content(value), reduction)
        return _to_upright_rgb(image)


def open_image(content: bytes, reduction: Reduction | None = None) -> Image.Image:
    """Open the bytes of an image file with Pillow and read its pixels, as they are stored or (for JPEG files) smaller.

    Raises:
        UndecodableImage: it is in none of `IMAGE_FORMATS`, or exceeds the limits of `size_limits`. Errors of decoders
            for damaged files are not changed.
    """
    Image.init()  # otherwise formats that are plugins are not known yet
    _let_pillow_allow(max_image_pixels())
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError as error:
        raise UndecodableImage(
            f"it has more pixels than the {max_image_pixels()} that `--max_image_pixels` allows"
        ) from error
    except UnidentifiedImageError as error:
        raise UndecodableImage(f"the file is not an image in a format that is read ({', '.join(formats)})") from error
    check_size(*image.size)  # before it is made smaller
    if reduction and image.format == "JPEG":
        factor = reduction(*image.size)
        image.draft(None, (image.width // factor, image.height // factor))
    return load_pixels(image)


def format_of(content: bytes) -> str | None:
    """The format of an image file, one of `IMAGE_FORMATS`, by its first bytes; None if it is none of these."""
    with suppress(Exception), Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
        return image.format
    return None


def load_pixels(image: Image.Image) -> Image.Image:
    """Read the pixels of an image that Pillow has opened; `UndecodableImage` if it is too large for that."""
    check_size(*image.size)
    image.load()
    return image


def _let_pillow_allow(num_pixels: int) -> None:
    """Raise Pillow's own limit to ours. Otherwise it would warn at every crop of a large image that passed ours."""
    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < num_pixels:
        Image.MAX_IMAGE_PIXELS = num_pixels


def turn_upright(image: Image.Image) -> Image.Image:
    """The image rotated and mirrored by its EXIF orientation, or the image itself if it is upright."""
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

    The range is given by the type for 16 bit. 32-bit integers and floats have no fixed range, so it is the smallest of
    1 (floats only), 255 and 65535 that contains all values, and otherwise the range of the values.
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
