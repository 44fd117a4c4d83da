"""Replaces images that cannot be decoded by others, so that a few broken files do not stop a long training."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from .decoding.undecodable import UndecodableImage


MAX_TRIES = 20


def first_decodable(
    candidates: Iterable[tuple[Any, Any]], decode: Callable[[Any], Any]
) -> tuple[Any, Any, list[tuple[Any, str]]]:
    """The first candidate that can be decoded.

    Args:
        candidates: rows and their values; at most 20 are tried.
        decode: decodes a value, or raises `UndecodableImage`.

    Returns:
        Its row, the decoded image, and the rows before it with the reasons.

    Raises:
        ValueError: none of 20 can be decoded.
    """
    skipped: list[tuple[Any, str]] = []
    for row, value in islice(candidates, MAX_TRIES):
        try:
            return row, decode(value), skipped
        except UndecodableImage as error:
            skipped.append((row, str(error)))
    row, reason = skipped[-1]
    raise ValueError(
        f"{MAX_TRIES} images in a row could not be decoded, the last of them {row} ({reason}); check that the image"
        " column holds images."
    )
