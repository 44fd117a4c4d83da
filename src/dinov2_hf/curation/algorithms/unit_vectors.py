"""Rows of unit length, which every algorithm here reads, wherever they are stored.

Shapes: `n` rows, `D` width.
"""

from collections.abc import Iterator
from typing import Protocol

import faiss
import numpy as np
import torch


# 16 MiB at a width of 512 in single precision: large enough for fast matrix products, and small for any memory.
READ_ROWS = 8192


class UnitVectors(Protocol):
    """Rows of unit length: an `EmbeddingStore` on disk, or an `ArrayEmbeddings` in memory."""

    width: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, (stop - start, D) float32."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows in the given order, (len(rows), D) float32."""

    def take_as_stored(self, rows: np.ndarray) -> np.ndarray:
        """As `take`, but in the precision in which they are stored, and of a length that is only near 1."""


class ArrayEmbeddings:
    """Vectors in memory with the interface of a store.

    Args:
        vectors: (n, D), brought to unit length in single precision.

    Raises:
        ValueError: `vectors` is not a matrix, or a row is zero or not finite.
    """

    def __init__(self, vectors: np.ndarray):
        vectors = np.array(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise ValueError(f"vectors have shape {vectors.shape}, but must be a matrix (rows, width).")
        self.vectors = unit_rows(vectors, lambda row: f"row {row}")
        self.width = vectors.shape[1]

    def __len__(self) -> int:
        return len(self.vectors)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.vectors[start:stop]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors[rows]

    take_as_stored = take


class ChosenRows:
    """Some rows of other vectors, in their order."""

    def __init__(self, vectors: UnitVectors, rows: np.ndarray):
        self.vectors, self.rows, self.width = vectors, rows, vectors.width

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.vectors.take(self.rows[start:stop])

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors.take(self.rows[rows])

    def take_as_stored(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors.take_as_stored(self.rows[rows])


class RowRange:
    """A range of the rows of other vectors."""

    def __init__(self, vectors: UnitVectors, start: int, stop: int):
        self.vectors, self.start, self.stop, self.width = vectors, start, stop, vectors.width

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.vectors.read(self.start + start, self.start + stop)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors.take(np.asarray(rows) + self.start)

    def take_as_stored(self, rows: np.ndarray) -> np.ndarray:
        return self.vectors.take_as_stored(np.asarray(rows) + self.start)


def unit_rows(vectors: np.ndarray, name_of) -> np.ndarray:
    """Bring (n, D) float32 rows to unit length in place; a row that is zero or not finite raises ValueError."""
    squares = np.empty((len(vectors), 1), np.float32)
    faiss.fvec_norms_L2sqr(faiss.swig_ptr(squares), faiss.swig_ptr(vectors), vectors.shape[1], len(vectors))
    bad = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
    if len(bad):
        found = "the zero vector" if squares[bad[0]] == 0 else "not finite"
        raise ValueError(
            f"the embedding of {name_of(int(bad[0]))} is {found} ({len(bad)} of {len(vectors)} rows read): "
            "embed these images again, or leave them out with `write_shard`."
        )
    torch.from_numpy(vectors).div_(torch.from_numpy(squares).sqrt())  # a third of NumPy's time
    return vectors


def row_blocks(start: int, stop: int, block_rows: int = READ_ROWS) -> Iterator[tuple[int, int]]:
    """The range `start` to `stop` in blocks of at most `block_rows` rows, as pairs."""
    for first in range(start, stop, block_rows):
        yield first, min(first + block_rows, stop)


def shard_range(num_rows: int, rank: int, world_size: int) -> range:
    """The rows of one of `world_size` tasks: contiguous, and of sizes that differ by 1 at most."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} must be in [0, world_size={world_size}).")
    return range(num_rows * rank // world_size, num_rows * (rank + 1) // world_size)
