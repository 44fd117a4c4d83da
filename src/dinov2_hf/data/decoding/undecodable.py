"""The error for an image that cannot be decoded, whatever the decoder raises."""

from collections.abc import Iterator
from contextlib import contextmanager


class UndecodableImage(ValueError):
    """An image that cannot be turned into a picture; the message is the reason."""


class MissingTiffReader(ValueError):
    """A TIFF reader is missing. This is not a fault of the image: every other image would fail too."""


@contextmanager
def undecodable_on_error() -> Iterator[None]:
    """Turn any error of a decoder into `UndecodableImage`. Damaged bytes raise nearly any error."""
    try:
        yield
    except (UndecodableImage, MissingTiffReader):
        raise
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
