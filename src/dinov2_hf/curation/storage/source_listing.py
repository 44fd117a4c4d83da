"""What a folder of image files holds: listed once, stored, and read by all processes of a curation.

```
listing/<number of the source>.arrow    its rows, and the size and time of the file of each
```

Looking through a folder takes time that grows with all of its files, and a process that makes one shard needs a few of
them. So the process that plans a curation looks, and the others map what it found into memory. A launch with a rank
takes a listing as long as the folder, those below it and its metadata are unchanged; a shard looks at the files of its
own rows (`OpenSources.refuse_changed`). Other sources, such as parquet files, are listings themselves.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ...atomic_files import WRITE_ERRORS, is_disk_full
from ...output_folders import umask


LISTING = "listing"
# Keys in the metadata of a file's schema: what is listed, as JSON, and `SourceListing.times`.
_LISTED, _TIMES = b"dinov2_hf.listed", b"dinov2_hf.times"


@dataclass(frozen=True)
class SourceListing:
    """A folder of image files at one moment.

    Attributes:
        dataset: its rows.
        states: (rows, 2) int64, bytes and time of change in nanoseconds of the file of each row.
        fingerprint: of all its files, see `file_fingerprints`.
        times: of its folders and metadata files, by `times_of`.
    """

    dataset: datasets.Dataset
    states: np.ndarray
    fingerprint: str
    times: bytes

    def is_current(self) -> bool:
        """Whether no file has come or gone since, and no metadata has changed. Files of rows are not looked at."""
        return times_of(json.loads(self.times)) == self.times


@dataclass(frozen=True)
class StoredListings:
    """Where the listings of a curation are.

    Attributes:
        fingerprints: of the sources, in their order; None: those of now, as far as `is_current` tells.
    """

    folder: Path
    fingerprints: tuple[str, ...] | None = None

    def read(self, number: int, described: Mapping[str, Any]) -> SourceListing | None:
        """The listing of a source; None where there is none of it as it is described, or it is out of date."""
        found = read_listing(self.folder, number, described)
        if found is None:
            return None
        is_it = found.is_current() if self.fingerprints is None else found.fingerprint == self.fingerprints[number]
        return found if is_it else None


def times_of(paths: Iterable[str]) -> bytes:
    """JSON of when files and folders were changed, in nanoseconds, by path."""
    found = {}
    for path in paths:
        try:
            status = os.stat(path)
            found[path] = [status.st_mtime_ns, status.st_ctime_ns]
        except OSError:
            found[path] = None
    return json.dumps(found, indent=0).encode()


def write_listing(folder: Path, number: int, listing: SourceListing, described: Mapping[str, Any]) -> None:
    """Store a listing, in place of an earlier one. Processes that have mapped that keep it.

    Args:
        described: plain values that tell what was listed.

    Raises:
        ValueError: a file in its place is somebody else's, or the disk is full.
    """
    place = _place(folder, number)
    facts = {"source": described, "fingerprint": listing.fingerprint, "rows": len(listing.dataset)}
    listed = json.dumps(facts).encode()
    if place.exists():
        metadata = _metadata(place)
        if metadata is None:
            raise ValueError(f"{place} was not written by dinov2_hf, so it is not replaced; move it away.")
        if (metadata[_LISTED], metadata[_TIMES]) == (listed, listing.times):
            return
    states = pa.FixedSizeListArray.from_arrays(pa.array(listing.states.reshape(-1)), 2)
    table = listing.dataset.data.table.append_column("state", states)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _LISTED: listed, _TIMES: listing.times})
    folder.mkdir(exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{place.name}.")
    try:
        with os.fdopen(handle, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        os.chmod(partial, 0o666 & ~umask())
        os.replace(partial, place)  # of launches that list the same at once, each puts the same there
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, WRITE_ERRORS) and is_disk_full(folder, error):
            raise ValueError(f"the disk of {folder} is full; make room, and run the same command again.") from error
        raise


def read_listing(folder: Path, number: int, described: Mapping[str, Any]) -> SourceListing | None:
    """The stored listing, as a memory map; None where there is none of what is described."""
    place = _place(folder, number)
    metadata = _metadata(place)
    if metadata is None:
        return None
    listed, times = json.loads(metadata.pop(_LISTED)), metadata.pop(_TIMES)
    if listed["source"] != described:
        return None
    table = pa.ipc.open_file(pa.memory_map(os.fspath(place))).read_all()
    states = table.columns[-1].combine_chunks().flatten().to_numpy().reshape(-1, 2)
    table = table.select(range(table.num_columns - 1)).replace_schema_metadata(metadata)
    # With a fingerprint that is given, or `datasets` would read all rows to make one.
    dataset = datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint=listed["fingerprint"])
    return SourceListing(dataset, states, listed["fingerprint"], times)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left. The caller knows that no other process writes here."""
    for path in folder.glob(".*.arrow.*"):
        if re.fullmatch(r"\.\d+\.arrow\.\w{8}", path.name) and path.is_file():
            path.unlink()


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number}.arrow"


def _metadata(place: Path) -> dict[bytes, bytes] | None:
    """The metadata of a listing's schema; None where there is no listing."""
    try:
        with pa.ipc.open_file(os.fspath(place)) as reader:
            metadata = dict(reader.schema.metadata or {})
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata if {_LISTED, _TIMES} <= set(metadata) else None
