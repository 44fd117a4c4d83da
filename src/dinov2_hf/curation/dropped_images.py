"""The record of every image that was dropped: where, why, and for which other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet


DROPPED_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "id": pa.string(),
        "source": pa.string(),
        "stage": pa.string(),
        "reason": pa.string(),
        "duplicate_of": pa.string(),  # id of the image that it repeats, where that is the reason
        "similarity": pa.float32(),  # to that image: cosine, or the share of equal bits of perceptual hashes
    }
)


@dataclass(frozen=True)
class DroppedImage:
    """A row of `dropped.parquet`."""

    row_id: int
    id: str
    source: str
    stage: str
    reason: str
    duplicate_of: str | None = None
    similarity: float | None = None


def write_dropped(dropped: Sequence[DroppedImage] | pa.Table, folder: Path) -> None:
    """Write `dropped.parquet` of a shard."""
    if not isinstance(dropped, pa.Table):
        dropped = pa.Table.from_pylist([vars(image) for image in dropped], schema=DROPPED_SCHEMA)
    parquet.write_table(dropped, folder / "dropped.parquet")


def read_dropped(paths: Iterable[Path]) -> pa.Table:
    """The rows of several files, in order."""
    return pa.concat_tables([DROPPED_SCHEMA.empty_table(), *(parquet.read_table(path) for path in paths)])
