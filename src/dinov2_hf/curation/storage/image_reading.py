"""Reading an image file more than once: an error of the disk or of the network says nothing of the image.

A broken image is dropped for good. A file that could not be read may be readable in an hour, so it is not recorded as
broken: the run stops, and the next one tries again.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from ...data.decoding.file_content import read_content
from ...data.decoding.undecodable import UndecodableImage


# A file server that is restarted, or a request that was lost, is often there again after so long.
SECONDS_BETWEEN_ATTEMPTS = (0.2, 2.0)

# Fewer failures do not stop a run, whatever their share: small sources may be half broken.
FEWEST_FAILURES = 100


class UnreadableFile(ValueError):
    """A file that gave an error of reading; the message names the error."""


Value = TypeVar("Value")


def read_image_file(value: dict[str, Any] | None) -> bytes:
    """The bytes of an image file, after several attempts where reading fails.

    Args:
        value: a row of `datasets.Image(decode=False)`.

    Raises:
        UndecodableImage: the row names no file, or one that is empty or may not be read.
        UnreadableFile: reading it fails; also where the file is not there, as behind a mount that was lost.
    """
    return with_attempts(lambda: read_content(value))


def with_attempts(read: Callable[[], Value]) -> Value:
    """What `read` gives, after several attempts where it fails.

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
            f"the image {image_id} cannot be read now ({reason}); what is finished is kept: run the same command"
            " again when it can be, or leave such images out with --skip_unreadable."
        )


def refuse_failures(num_failed: int, num_images: int, source: str, last: str, *, max_failure_rate: float) -> None:
    """Stop a run of which so many images fail that the cause is hardly in the images.

    Args:
        num_failed: images that cannot be read or decoded, so far, of `num_images` of a shard.
        source: its name.
        last: what the last of them failed with.

    Raises:
        ValueError: they are more than `max_failure_rate` of the shard, and at least `FEWEST_FAILURES`.
    """
    if num_failed >= FEWEST_FAILURES and num_failed > max_failure_rate * num_images:
        raise ValueError(
            f"{num_failed} of {num_images} images of a shard of the source {source!r} cannot be read or decoded (the"
            f" last: {last}), a larger share than max_failure_rate ({max_failure_rate}); what is finished is kept: run"
            " the same command again when they can be, or allow more, --max_failure_rate."
        )
