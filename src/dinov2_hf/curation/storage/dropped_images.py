"""The record of every image that was dropped: where, why, and for which other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet


DROPPED_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "id": pa.string(),
        "path": pa.string(),  # of the file, where the source has files
        "source": pa.string(),
        "stage": pa.string(),
        "reason": pa.string(),
        "duplicate_of": pa.string(),  # id of the image that it repeats, where that is the reason
        "similarity": pa.float32(),  # to that image: cosine, or the share of equal bits of perceptual hashes
    }
)
# Tables of the records are read, made and written in parts of so many rows: their texts then stay far below the 2 GiB
# of an Arrow array.
ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class DroppedImage:
    """A row of `dropped.parquet`."""

    row_id: int
    id: str
    path: str | None
    source: str
    stage: str
    reason: str


def write_dropped(dropped: Sequence[DroppedImage] | Iterable[pa.Table], folder: Path) -> None:
    """Write `dropped.parquet` of a shard, from records or from tables of `DROPPED_SCHEMA`."""
    if isinstance(dropped, Sequence):
        dropped = [pa.Table.from_pylist([vars(image) for image in dropped], schema=DROPPED_SCHEMA)]
    with parquet.ParquetWriter(folder / "dropped.parquet", DROPPED_SCHEMA) as writer:
        for table in dropped:
            writer.write_table(table)


def read_dropped(paths: Iterable[Path]) -> Iterator[pa.Table]:
    """The rows of several files, in order, in parts."""
    for path in paths:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield pa.Table.from_batches([batch], schema=DROPPED_SCHEMA)
