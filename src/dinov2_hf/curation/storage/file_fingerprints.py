"""Tells whether files are those of an earlier run, by the names, sizes and times of what links lead to."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from ...data.reading.folders import files_below
from ...output_folders import LITTER


ABSENT = (-1, -1)


def file_fingerprint(path: str | None) -> str:
    """Changes with the name, size or time of a file, or of the files in a folder; with the name alone otherwise."""
    if path is None:
        return ""
    root = Path(path).expanduser()
    return FileStates(paths_below(root)[0] if root.is_dir() else [str(root)]).fingerprint([path])


class FileStates:
    """Sizes and times of files, and of what links lead to, at one moment.

    Args:
        files: paths; only the names count for files that are not there, and for URLs.

    Attributes:
        files: each once, ascending.
        states: (n, 2) int64, by `state_of`.
    """

    def __init__(self, files: Iterable[str]):
        self.files = [file for file, _ in groupby(sorted(files))]
        self.states = np.fromiter(map(state_of, self.files), np.dtype((np.int64, 2)), len(self.files))

    def fingerprint(self, names: Iterable[str] = ()) -> str:
        """As `fingerprint_of`."""
        return fingerprint_of(self.files, self.states, *names)

    def of(self, files: Iterable[str]) -> np.ndarray:
        """(m, 2) states of some of the files."""
        place_of = {file: place for place, file in enumerate(self.files)}
        return self.states[[place_of[file] for file in files]]


def fingerprint_of(files: Iterable[str], states: np.ndarray, *names: str) -> str:
    """Changes with one of the names, and with the name, size or time of a file.

    Args:
        files: n names, in an order that does not change.
        states: (n, 2) int64, by `state_of`.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        digest.update(f"{name}\n".encode())
    numbers = memoryview(np.ascontiguousarray(states).reshape(-1))  # it makes its numbers one at a time
    for file, size, time in zip(files, numbers[::2], numbers[1::2], strict=True):
        found = "absent" if (size, time) == ABSENT else f"{size} {time}"
        digest.update(f"{file} {found}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def state_of(file: str) -> tuple[int, int]:
    """Bytes and time of change in nanoseconds of a file; `ABSENT` if it is not there."""
    try:
        status = os.stat(file)
    except OSError:
        return ABSENT
    return status.st_size, status.st_mtime_ns


def paths_below(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """
    Paths of all files below a folder, as a folder of images is read, without what file browsers leave; and the paths
    of their folders.
    """
    files, folders, _ = files_below(os.fspath(folder))
    files = [os.path.join(folder, file) for file in files if os.path.basename(file) not in LITTER]
    return files, [os.path.join(folder, name) for name in folders]


def files_of_rows(dataset: datasets.Dataset, column: str) -> Iterator[str]:
    """The files that the rows of an image column name in place of holding an image."""
    return paths_in(dataset.data.column(column).chunks)


def paths_in(chunks: Iterable[pa.Array]) -> Iterator[str]:
    """The files that images, or texts, name."""
    for chunk in chunks:
        if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            yield from (path for path in chunk.to_pylist() if path is not None)
        elif pa.types.is_struct(chunk.type):
            content, paths = chunk.field("bytes"), chunk.field("path")
            # If a row holds an image, the path is only its name.
            yield from (path for path in paths.filter(content.is_null()).to_pylist() if path is not None)
