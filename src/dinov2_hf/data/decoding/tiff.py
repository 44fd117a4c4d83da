"""TIFF files with any number of bands, as arrays, within limits that are checked before a pixel is read.

tifffile decodes, and it trusts the file. So this module first walks through the directories (one for each page), and
then checks each page: its size, that the file contains every strip or tile, and that no strip or tile unpacks to more
than its part of the image. Metadata of OME, ImageJ and the like are not read.
"""

import io
import lzma
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .size_limits import MAX_CHANNELS, check_size
from .undecodable import MissingTiffReader, UndecodableImage


TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tiles are multiples of 16 by the standard; smaller ones make an image take minutes.
MIN_TILE_SIZE = 16
# Compressions (by their numbers in the standard) that tifffile unpacks with no limit of its own.
UNPACKERS: dict[int, Callable[[], Any]] = {
    8: zlib.decompressobj,
    32946: zlib.decompressobj,
    34925: lzma.LZMADecompressor,
}


def read_tiff(content: bytes) -> np.ndarray:
    """The image of a file, with bands that are interleaved, in planes, or in pages of the first page's size.

    Args:
        content: the bytes of the file.

    Returns:
        (height, width, bands), in the number type of the file.

    Raises:
        UndecodableImage: it is damaged, exceeds the limits of `size_limits`, or contains several images with bands.
        MissingTiffReader: tifffile (the extra `multiband`) is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingTiffReader(
            'TIFF files of several bands need tifffile, which is not installed: pip install "dinov2_hf[multiband]".'
        ) from error
    num_pages = count_directories(content)
    # Files of these kinds would be read completely when they are opened.
    plain = {"is_lsm": False, "is_scanimage": False, "is_ndpi": False}
    with tifffile.TiffFile(io.BytesIO(content), **plain) as file:
        first = file.pages[0]
        _check_page(first, content, num_pages)
        pages = [first]
        for index in range(1, num_pages):
            page = file.pages[index]
            # Other pages are smaller copies, masks and labels.
            if (page.shape, page.dtype) == (first.shape, first.dtype):
                _check_page(page, content)
                pages.append(page)
        if set(first.axes) == {"Y", "X"}:
            return np.stack([page.asarray(maxworkers=1) for page in pages], axis=-1)
        if sorted(first.axes) != ["S", "X", "Y"] or len(pages) > 1:
            raise UndecodableImage(
                f"it has {len(pages)} pages with the axes {first.axes} of shape {first.shape}, not height, width and"
                " channels"
            )
        array = first.asarray(maxworkers=1)
        return array.transpose([first.axes.index(axis) for axis in "YXS"])


def count_directories(content: bytes) -> int:
    """The number of pages of a TIFF file, by following the chain of their directories.

    Raises:
        UndecodableImage: the chain leaves the file, loops, is empty, or is longer than `MAX_CHANNELS`.
    """
    order = "<" if content[:2] == b"II" else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    offset_format, count_format, entry_bytes = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    place, seen = 8 if is_big else 4, set()

    def number(format: str, place: int) -> int:
        try:
            return struct.unpack_from(order + format, content, place)[0]
        except struct.error as error:
            raise UndecodableImage("the file ends in the middle of its list of pages") from error

    while offset := number(offset_format, place):
        if offset in seen:
            raise UndecodableImage("its list of pages is a circle")
        seen.add(offset)
        if len(seen) > MAX_CHANNELS:
            raise UndecodableImage(f"it has more than {MAX_CHANNELS} pages")
        place = offset + struct.calcsize(order + count_format) + number(count_format, offset) * entry_bytes
    if not seen:
        raise UndecodableImage("it has no pages")
    return len(seen)


def _check_page(page: Any, content: bytes, num_pages: int = 1) -> None:
    """`UndecodableImage` for a page that would take more memory or time than an allowed image of its file size."""
    check_size(page.imagewidth, page.imagelength, page.samplesperpixel * num_pages)
    if page.imagedepth != 1 or page.dtype is None:
        raise UndecodableImage("it is a volume, or of numbers that are not known")
    if page.is_tiled and min(page.tilelength, page.tilewidth) < MIN_TILE_SIZE:
        raise UndecodableImage(f"its tiles are {page.tilelength} x {page.tilewidth} pixels, less than {MIN_TILE_SIZE}")
    if page.is_tiled:
        check_size(page.tilewidth, page.tilelength)
    offsets, sizes = page.dataoffsets, page.databytecounts
    # One contiguous block may contain all strips.
    if len(offsets) != len(sizes) or len(offsets) not in (1, math.prod(page.chunked)):
        raise UndecodableImage(f"it names {len(offsets)} places of data for {math.prod(page.chunked)} strips or tiles")
    if sum(sizes) > len(content):
        raise UndecodableImage("its strips or tiles are larger together than the file, which must be damaged")
    if page.compression in UNPACKERS:
        limit = math.prod(page.chunks) * page.dtype.itemsize
        for offset, size in zip(offsets, sizes, strict=True):
            unpacked = UNPACKERS[page.compression]().decompress(content[offset : offset + size], limit + 1)
            if len(unpacked) > limit:
                raise UndecodableImage("a strip or tile unpacks to more than its part of the image")
