"""Whether files are those of an earlier run: by names, sizes and times, of what links lead to."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa

from ...data.reading.folders import files_below
from ...output_folders import LITTER


def file_fingerprint(path: str | None) -> str:
    """Changes with name, size or time of a file, or of the files of a folder; of the name alone if it is neither."""
    if path is None:
        return ""
    root = Path(path).expanduser()
    return fingerprint_of([path], paths_below(root) if root.is_dir() else [str(root)])


def fingerprint_of(names: Iterable[str], files: Iterable[str]) -> str:
    """Changes with a name, and with the name, size or time of a file.

    Args:
        files: paths; those of files that are not there count with their names, and so do URLs.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        digest.update(f"{name}\n".encode())
    for file in sorted(set(files)):
        try:
            status = os.stat(file)
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:
            digest.update(f"{file} absent\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def paths_below(folder: str | os.PathLike) -> list[str]:
    """Paths of all files below a folder, as a folder of images is read, but for what file browsers leave."""
    files, _ = files_below(os.fspath(folder))
    return [os.path.join(folder, file) for file in files if os.path.basename(file) not in LITTER]


def files_of_rows(dataset: datasets.Dataset, column: str) -> Iterator[str]:
    """The files that the rows of an image column name in place of holding an image."""
    for chunk in dataset.data.column(column).chunks:
        if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            yield from (path for path in chunk.to_pylist() if path is not None)
        elif pa.types.is_struct(chunk.type):
            content, paths = chunk.field("bytes"), chunk.field("path")
            # Of rows that hold an image the path is only its name.
            yield from (path for path in paths.filter(content.is_null()).to_pylist() if path is not None)
