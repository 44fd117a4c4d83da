"""What a source holds. It is looked at once, stored, and read by all processes of a curation.

```
listing/<number of the source>.arrow    its rows, or where they lie, and the size and time of each of its files
```

Looking through a folder, or at the footers and headers of parquet files and tars, takes time that grows with all of
the files, but a process that makes one shard needs only a few of them. So the process that plans a curation looks, and
the others map what it found into memory. A launch with a rank takes a listing if the folder, the folders below it,
packed files and metadata are unchanged. It takes the listing of a store as it is. A shard looks at the files of its
own rows (`OpenSources.refuse_changed`).
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable

from ...atomic_files import WRITE_ERRORS, is_disk_full
from ...output_folders import umask
from .parquet_rows import ParquetRows
from .source_rows import DatasetRows, SourceRows
from .tar_rows import TarRows


LISTING = "listing"
# Keys in the metadata of a file's schema: what is listed, as JSON, and `SourceListing.times`.
_LISTED, _TIMES = b"dinov2_hf.listed", b"dinov2_hf.times"


@dataclass(frozen=True)
class ListedContent:
    """What was found in a source, beside its rows; plain values.

    Attributes:
        kind: "files" for rows that name files, otherwise the kind of the packed files.
        image_column: the column of the images.
        splits: the number of files of each split, if the source has splits.
        unread: the number of files that are not read, by suffix.
        left_out: the number of files beside the splits.
        files: paths or addresses of packed files.
        roots: where files that rows of parquet files name may be.
    """

    kind: Literal["files", "parquet", "tar"]
    image_column: str
    splits: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    files: list[str] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SourceListing:
    """A source at one moment.

    Attributes:
        content: what was found.
        table: its rows, or the index of the rows of packed files (`parquet_rows`, `tar_rows`).
        features: the types of the columns.
        states: (rows or packed files, 2) int64, bytes and time of change in nanoseconds of each file.
        fingerprint: of all its files, see `file_fingerprints`.
        times: of its folders, packed files and metadata, by `times_of`; empty: nothing tells whether it has changed.
    """

    content: ListedContent
    table: pa.Table
    features: datasets.Features
    states: np.ndarray
    fingerprint: str
    times: bytes

    @cached_property
    def rows(self) -> SourceRows:
        content = self.content
        if content.kind == "parquet":
            return ParquetRows(content.files, self.table, self.features, content.roots)
        if content.kind == "tar":
            return TarRows(content.files, self.table, self.features)
        # A fingerprint is given, because `datasets` would read all rows to make one.
        info = datasets.DatasetInfo(features=self.features)
        return DatasetRows(datasets.Dataset(InMemoryTable(self.table), info=info, fingerprint=self.fingerprint))

    def files_of(self, rows: list[int]) -> Iterable[tuple[str, tuple[int, int]]]:
        """The files that some rows are in, or name, with their states when they were listed."""
        if self.content.kind == "files":
            images = self.table.column(self.content.image_column).take(rows).combine_chunks()
            found = zip(images.field("path").to_pylist(), map(tuple, self.states[rows].tolist()), strict=True)
            return ((path, state) for path, state in found if path is not None)
        numbers = np.unique(self.rows.file_numbers(rows))
        return ((self.content.files[number], tuple(self.states[number].tolist())) for number in numbers)

    def is_current(self) -> bool:
        """Whether no file has come or gone since, and no metadata has changed. Files of rows are not looked at."""
        return self.times != b"" and times_of(json.loads(self.times)) == self.times


@dataclass(frozen=True)
class StoredListings:
    """Where the listings of a curation are.

    Attributes:
        fingerprints: of the sources, in their order; None: the current ones, as far as `is_current` tells.
    """

    folder: Path
    fingerprints: tuple[str, ...] | None = None

    def read(self, number: int, described: Mapping[str, Any]) -> SourceListing | None:
        """The listing of a source; None if there is no listing with this description, or it is out of date."""
        found = read_listing(self.folder, number, described)
        if found is None:
            return None
        is_it = found.is_current() if self.fingerprints is None else found.fingerprint == self.fingerprints[number]
        return found if is_it else None


def times_of(paths: Iterable[str]) -> bytes:
    """The times at which files and folders were changed, in nanoseconds, by path, as JSON."""
    found = {}
    for path in paths:
        try:
            status = os.stat(path)
            found[path] = [status.st_mtime_ns, status.st_ctime_ns]
        except OSError:
            found[path] = None
    return json.dumps(found, indent=0).encode()


def write_listing(folder: Path, number: int, listing: SourceListing, described: Mapping[str, Any]) -> None:
    """Store a listing, in place of an earlier one. Processes that have mapped the earlier one keep it.

    Args:
        described: plain values that tell what was listed.

    Raises:
        ValueError: a file in its place is somebody else's, or the disk is full.
    """
    place = _place(folder, number)
    facts = {
        "source": described, "fingerprint": listing.fingerprint, "content": asdict(listing.content),
        "features": listing.features.to_dict(),
    }  # fmt: skip
    if listing.content.kind != "files":
        facts["states"] = listing.states.tolist()
    listed = json.dumps(facts).encode()
    if place.exists():
        metadata = _metadata(place)
        if metadata is None:
            raise ValueError(f"{place} was not written by dinov2_hf, so it is not replaced; move it away.")
        if (metadata[_LISTED], metadata[_TIMES]) == (listed, listing.times):
            return
    table = listing.table
    if listing.content.kind == "files":
        states = pa.FixedSizeListArray.from_arrays(pa.array(listing.states.reshape(-1)), 2)
        table = table.append_column("state", states)
    table = table.replace_schema_metadata({_LISTED: listed, _TIMES: listing.times})
    folder.mkdir(exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.chmod(partial, 0o666 & ~umask())
        os.replace(partial, place)  # launches that list at the same time put the same file there
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, WRITE_ERRORS) and is_disk_full(folder, error):
            raise ValueError(f"the disk of {folder} is full; make room, and run the same command again.") from error
        raise


def read_listing(folder: Path, number: int, described: Mapping[str, Any]) -> SourceListing | None:
    """The stored listing, as a memory map; None if there is none with this description."""
    place = _place(folder, number)
    metadata = _metadata(place)
    if metadata is None:
        return None
    listed, times = json.loads(metadata[_LISTED]), metadata[_TIMES]
    if listed["source"] != described or "content" not in listed:  # earlier versions stored it without
        return None
    table = pa.ipc.open_file(pa.memory_map(os.fspath(place))).read_all().replace_schema_metadata(None)
    content = ListedContent(**listed["content"])
    if content.kind == "files":
        states = table.columns[-1].combine_chunks().flatten().to_numpy().reshape(-1, 2)
        table = table.select(range(table.num_columns - 1))
    else:
        states = np.array(listed["states"], np.int64).reshape(-1, 2)
    features = datasets.Features.from_dict(listed["features"])
    return SourceListing(content, table, features, states, listed["fingerprint"], times)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left. The caller knows that no other process writes here."""
    for path in folder.glob(".*.arrow.*"):
        if re.fullmatch(r"\.\d+\.arrow\.\w{8}", path.name) and path.is_file():
            path.unlink()


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number}.arrow"


def _metadata(place: Path) -> dict[bytes, bytes] | None:
    """The metadata of a listing's schema; None if there is no listing."""
    try:
        with pa.ipc.open_file(os.fspath(place)) as reader:
            metadata = dict(reader.schema.metadata or {})
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata if {_LISTED, _TIMES} <= set(metadata) else None
