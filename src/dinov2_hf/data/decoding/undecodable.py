"""An image that cannot be decoded, whatever the decoder raises for it."""

from collections.abc import Iterator
from contextlib import contextmanager


class UndecodableImage(ValueError):
    """An image that cannot be turned into a picture; the message is the reason."""


class MissingTiffReader(ValueError):
    """Not a fault of the image: every other one would fail too."""


@contextmanager
def undecodable_on_error() -> Iterator[None]:
    """Decoders meet hostile bytes and raise nearly anything (OSError, SyntaxError, struct.error, IndexError, ...)."""
    try:
        yield
    except (UndecodableImage, MissingTiffReader):
        raise
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
