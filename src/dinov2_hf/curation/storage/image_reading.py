"""Tries to read an image file more than once: an error of the disk or of the network says nothing about the image.

A broken image is dropped for good. A file that could not be read may be readable in an hour, so it is not recorded as
broken: the run stops, and the next run tries again.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from ...data.decoding.file_content import read_content
from ...data.decoding.undecodable import UndecodableImage


# After this time a file server that was restarted is often there again, and a request that was lost succeeds.
SECONDS_BETWEEN_ATTEMPTS = (0.2, 2.0)

# Fewer failures do not stop a run, whatever their share is: half of a small source may be broken.
FEWEST_FAILURES = 100


class UnreadableFile(ValueError):
    """A file could not be read; the message names the error."""


Value = TypeVar("Value")


def read_image_file(value: dict[str, Any] | None) -> bytes:
    """The bytes of an image file; if reading fails, several attempts are made.

    Args:
        value: a row of `datasets.Image(decode=False)`.

    Raises:
        UndecodableImage: the row names no file, or a file that is empty or may not be read.
        UnreadableFile: reading fails, also because the file is not there, for example behind a mount that was lost.
    """
    return with_attempts(lambda: read_content(value))


def with_attempts(read: Callable[[], Value]) -> Value:
    """What `read` returns; if it fails, several attempts are made.

    Raises:
        UndecodableImage: as `read` raises it.
        UnreadableFile: for any other error.
    """
    for seconds in (*SECONDS_BETWEEN_ATTEMPTS, None):
        try:
            return read()
        except UndecodableImage:
            raise
        except Exception as error:  # errors of HTTP clients have no common class
            if seconds is None:
                raise UnreadableFile(" ".join(f"{type(error).__name__}: {error}".split())) from error
            time.sleep(seconds)
    raise AssertionError("unreachable")


def refuse_unread(image_id: str, reason: str, *, skip_unreadable: bool) -> None:
    """Stop the run at an image that cannot be read now, unless the user leaves out such images.

    Raises:
        ValueError: `skip_unreadable` is not set.
    """
    if not skip_unreadable:
        raise ValueError(
            f"the image {image_id} cannot be read now ({reason}); what is finished is kept. Run the same command"
            " again when the image can be read, or leave such images out with --skip_unreadable."
        )


def refuse_failures(num_failed: int, num_images: int, source: str, last: str, *, max_failure_rate: float) -> None:
    """Stop a run in which so many images fail that the images are hardly the cause.

    Args:
        num_failed: images that cannot be read or decoded so far, of `num_images` in a shard.
        source: its name.
        last: the last image that failed, and its error.

    Raises:
        ValueError: they are more than `max_failure_rate` of the shard, and at least `FEWEST_FAILURES`.
    """
    if num_failed >= FEWEST_FAILURES and num_failed > max_failure_rate * num_images:
        raise ValueError(
            f"{num_failed} of {num_images} images of a shard of the source {source!r} cannot be read or decoded (the"
            f" last: {last}), a larger share than max_failure_rate ({max_failure_rate}); what is finished is kept. Run"
            " the same command again when they can be read, or allow more failures with --max_failure_rate."
        )
