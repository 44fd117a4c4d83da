"""Samples of WebDataset tars. They are read where the tars are, one file at a time; nothing is unpacked or copied.

The headers of a tar are read once, to know where its files lie. A sample consists of successive files with the same
name; their suffixes are the columns.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, BinaryIO

import datasets
import numpy as np
import pyarrow as pa
from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

from ...data.decoding.file_content import is_url
from ...data.decoding.size_limits import check_file_size
from ...data.reading.damaged_files import cause_of
from ...data.reading.folders import IMAGE_SUFFIXES
from ...data.reading.remote_files import filesystem_of, open_url
from .source_files import counted_suffixes


READERS = 16  # tars that are read at once
KEY, URL, IMAGE = "__key__", "__url__", "image"
# The number of samples whose files tell the type of a column.
TELLING_SAMPLES = 5
_PLACE = pa.struct({"offset": pa.int64(), "size": pa.int64()})


def index_of(tars: Sequence[str]) -> tuple[pa.Table, datasets.Features, Counter]:
    """Where the files of all samples are.

    Args:
        tars: paths or addresses, in the order of the rows.

    Returns:
        A table of `file`, the number of the tar, `__key__`, and for each suffix a struct of `offset` and `size`, null
        if a sample has no such file; the types of the columns; and the number of files of each suffix that belong to
        no sample, such as hidden files. Images of several suffixes become one column, `image`, if each sample has at
        most one of them.

    Raises:
        ValueError: a tar is damaged, compressed or cannot be read, or a sample has a file twice.
    """
    numbers, keys, samples, unread = [], [], [], Counter()
    with ThreadPoolExecutor(READERS) as pool:
        for number, (found, others) in enumerate(pool.map(_samples_of, tars)):
            unread += others
            for key, files in found:
                numbers.append(number)
                keys.append(key)
                samples.append(files)
    suffixes = sorted({suffix for files in samples for suffix in files})
    images = [suffix for suffix in suffixes if f".{suffix.split('.')[-1]}" in IMAGE_SUFFIXES]
    columns = {suffix: [files.get(suffix) for files in samples] for suffix in suffixes}
    if len(images) > 1 and all(sum(suffix in files for suffix in images) < 2 for files in samples):
        columns[IMAGE] = [next((files[suffix] for suffix in images if suffix in files), None) for files in samples]
        for suffix in images:
            del columns[suffix]
        images = [IMAGE]
    arrays = {name: pa.array(places, _PLACE) for name, places in columns.items()}
    index = pa.table({"file": pa.array(numbers, pa.int32()), KEY: pa.array(keys, pa.string()), **arrays})
    features = {name: datasets.Image(decode=False) for name in images}
    features |= {name: _type_of(name, index, tars) for name in columns if name not in images}
    features |= {KEY: datasets.Value("string"), URL: datasets.Value("string")}
    return index, datasets.Features(features), unread


def _samples_of(tar: str) -> tuple[list[tuple[str, dict[str, dict[str, int]]]], Counter]:
    """The key of each sample, and by suffix where its files are; and the suffixes of files that are in no sample."""
    samples: list[tuple[str, dict[str, dict[str, int]]]] = []
    unread: list[str] = []
    try:
        if not is_url(tar) and os.path.getsize(tar) == 0:
            raise EOFError("it is empty")
        for member in _members(tar):
            key, suffix = base_plus_ext(member.name)
            if key is None or not member.isfile():
                unread += [] if member.isdir() else [member.name]
                continue
            if not samples or samples[-1][0] != key:
                samples.append((key, {}))
            files, suffix = samples[-1][1], suffix.lower()
            if suffix in files:
                raise ValueError(f"its sample {key} has two files .{suffix}")
            files[suffix] = {"offset": member.offset_data, "size": member.size}
    except Exception as error:  # clients of stores have no common class of errors
        raise ValueError(f"{tar!r} is not a whole tar ({cause_of(error)}); get it again, or leave it out.") from error
    return samples, counted_suffixes(unread)


def _members(tar: str) -> Iterator[tarfile.TarInfo]:
    if not is_url(tar):
        with tarfile.open(tar, "r:") as opened:
            yield from opened
        return
    store, path = filesystem_of(tar)
    # Large blocks read the whole tar if its files are small, which is faster than a request for each header.
    with store.open(path, "rb", cache_type="readahead") as file, tarfile.open(fileobj=file, mode="r:") as opened:
        yield from opened


def _type_of(column: str, index: pa.Table, tars: Sequence[str]) -> Any:
    """The type of a column of files that are not images, by the first samples."""
    places = np.flatnonzero(index[column].is_valid().to_numpy(zero_copy_only=False))[:TELLING_SAMPLES].tolist()
    values = [
        _decoded(column, _content(tars[index["file"][row].as_py()], index[column][row].as_py())) for row in places
    ]
    return datasets.Features.from_arrow_schema(pa.table({column: values}).schema)[column]


def _decoded(column: str, content: bytes) -> Any:
    """The value of a file, as WebDataset reads its suffix; files with unknown suffixes stay bytes."""
    suffix = column.split(".")[-1]
    decode = None if suffix == "pth" else WebDataset.DECODERS.get(suffix)  # such a file may contain a program
    return content if decode is None else decode(content)


@lru_cache(maxsize=16)
def _opened(tar: str, process: int) -> BinaryIO:
    """A tar, kept open in this process: clients of stores do not work in a fork, and forked files share a position."""
    return open_url(tar) if is_url(tar) else open(tar, "rb")


def _content(tar: str, place: dict[str, int]) -> bytes:
    file = _opened(tar, os.getpid())
    file.seek(place["offset"])
    content = file.read(place["size"])
    if len(content) != place["size"]:
        raise OSError(f"{tar} is cut short")
    return content


class TarRows:
    """
    Args:
        tars: paths or addresses.
        index, features: from `index_of`.
    """

    def __init__(self, tars: Sequence[str], index: pa.Table, features: datasets.Features):
        self.tars, self.index, self.features = list(tars), index, features

    def __len__(self) -> int:
        return len(self.index)

    def file_numbers(self, rows: Sequence[int]) -> np.ndarray:
        """The number of the tar of each row."""
        return self.index["file"].take(rows).to_numpy()

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        tar = self.tars[self.index["file"][row].as_py()]
        return {name: self._value(row, tar, name) for name in columns}

    def _value(self, row: int, tar: str, column: str) -> Any:
        if column == URL:
            return tar
        found = self.index[column][row].as_py()
        if column == KEY or found is None:
            return found
        is_image = isinstance(self.features[column], datasets.Image)
        if is_image:
            check_file_size(found["size"])
        content = _content(tar, found)
        # The path names a file that does not exist by itself; the content tells its format.
        return (
            {"bytes": content, "path": f"{self._value(row, tar, KEY)}.{column}"}
            if is_image
            else _decoded(column, content)
        )

    def refuse_unreadable_files(self, column: str) -> None:
        """Files of samples are in the tars."""
