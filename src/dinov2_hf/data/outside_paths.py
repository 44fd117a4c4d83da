"""The mark of a path that a row of a dataset may not name (`row_paths`), known to whoever opens files."""

import os


# What a forbidden path becomes, so that it is reported as an image that cannot be decoded, and never opened.
OUTSIDE = "outside-of-its-dataset:"


def outside_path(path: str | os.PathLike) -> str | None:
    """The forbidden path that `row_paths.confined` has found in a row; None for any other path."""
    text = os.fspath(path)
    return text.removeprefix(OUTSIDE) if isinstance(text, str) and text.startswith(OUTSIDE) else None
