"""Reads a file that a row or a user names, and recognises paths that a row may not name (`row_paths`)."""

import os
import re
import stat
from collections.abc import Mapping
from typing import Any, cast

import fsspec

from .size_limits import BYTES_PER_PIXEL, check_file_size, max_image_pixels
from .undecodable import UndecodableImage


# The mark of a forbidden path. Such a path is reported as an image that cannot be decoded, and is never opened.
OUTSIDE = "outside-of-its-dataset:"


def outside_path(path: str | os.PathLike) -> str | None:
    """The forbidden path that `row_paths.confined` found in a row; None for any other path."""
    text = os.fspath(path)
    return text.removeprefix(OUTSIDE) if isinstance(text, str) and text.startswith(OUTSIDE) else None


def read_content(value: Mapping[str, Any] | bytes | str | os.PathLike) -> bytes:
    """The bytes of an image file.

    Args:
        value: as in `decode_image`, but not an open image.

    Raises:
        UndecodableImage: there are no bytes, the file is not a regular file (reading a device or a pipe might never
            end), it is larger than any allowed image, or a row names a file outside of its dataset (see `row_paths`).
        OSError: the file cannot be read.
    """
    if isinstance(value, Mapping):
        value = value["path"] if value.get("bytes") is None else value["bytes"]
    if value is None:
        raise UndecodableImage("the row holds no image")
    if isinstance(value, (str, os.PathLike)):
        outside = outside_path(value)
        if outside is not None:
            raise UndecodableImage(f"it names the file {outside}, which lies outside of the folder of its dataset")
        # Rows of a streamed Hub data set name remote files, such as hf://datasets/...
        value = _read_remote(str(value)) if is_url(str(value)) else _read_regular(value)
    content = cast(bytes, value)
    if len(content) == 0:
        raise UndecodableImage("the file is empty")
    return content


def is_url(path: str) -> bool:
    """Whether a path is an address, and not on this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


def _read_remote(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        content = file.read(BYTES_PER_PIXEL * max_image_pixels() + 1)
    check_file_size(len(content))
    return content


def _read_regular(path: str | os.PathLike) -> bytes:
    # Opening a pipe without a writer would wait, and reading a device would not end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableImage(f"{os.fspath(path)} is not a regular file")
        check_file_size(status.st_size)
        return file.read()
