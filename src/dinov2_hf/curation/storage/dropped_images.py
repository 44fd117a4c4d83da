"""The record of every image that was dropped: where, why, and for which other image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet


DROPPED_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "id": pa.string(),
        "path": pa.string(),  # of the file, if the source has files
        "source": pa.string(),
        "stage": pa.string(),
        "reason": pa.string(),
        "duplicate_of": pa.string(),  # id of the image that it repeats, if that is the reason
        "similarity": pa.float32(),  # to that image: cosine, or the share of equal bits of perceptual hashes
    }
)
# Tables of the records are read, made and written in parts of this many rows, so their texts stay far below the 2 GiB
# that an Arrow array can hold.
ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Dropped:
    """Images that a stage drops, and why.

    Attributes:
        row_ids: (m,) of images that were left before the stage.
        reasons: one text for all, or (m,) texts; what differs from image to image comes after a colon.
        others: (m,) row ids of the images that they repeat, if that is the reason.
        similarities: (m,) to these.
    """

    row_ids: np.ndarray
    reasons: str | Sequence[str]
    others: np.ndarray | None = None
    similarities: np.ndarray | None = None


def write_dropped(tables: Iterable[pa.Table], folder: Path) -> None:
    """Write `dropped.parquet` of a shard, from tables of `DROPPED_SCHEMA`."""
    with parquet.ParquetWriter(folder / "dropped.parquet", DROPPED_SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)


def read_dropped(path: Path) -> Iterator[pa.Table]:
    """The rows of a file in parts."""
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            yield pa.Table.from_batches([batch], schema=DROPPED_SCHEMA)
