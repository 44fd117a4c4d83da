"""The vectors of a pool of images: a folder of half-precision shards, read as memory maps.

A shard is two files, `NAME.npy` with the vectors and `NAME.ids.npy` with the id of each row. The rows of a store are
counted through its shards in the order of their names, so a row is a number in [0, n) that every later stage uses;
ids come back in when results are written.

Shapes: `n` rows in all shards, `D` width.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...atomic_files import new_file
from ..algorithms.unit_vectors import unit_rows


OPEN_FILES = 65_536  # more than a process maps of a few stores of some thousand shards


@dataclass(frozen=True)
class WrittenShard:
    """What `write_shard` wrote.

    Attributes:
        num_rows: vectors in the shard.
        rejected: id and reason of every vector that was left out.
    """

    num_rows: int
    rejected: list[tuple[int, str]]


def write_shard(folder: str | os.PathLike, name: str, vectors: np.ndarray, ids: Sequence[int]) -> WrittenShard:
    """Write one shard, at unit length and in half precision; an older shard of this name is replaced.

    The vectors come last, so a shard without ids is never seen. Half precision changes a cosine by less than 0.001.

    Args:
        folder: of the store; made if missing.
        name: of the shard, without ending; names sort in the order that the rows shall have.
        vectors: (rows, D), floating point.
        ids: (rows,) unique integers.

    Returns:
        The number of rows written, and the id of each vector that has no direction (zero, NaN or infinite values) or
        repeats an id of this shard, with the reason.

    Raises:
        ValueError: the vectors are no matrix of floating-point numbers, or their number is not that of the ids.
    """
    vectors, ids = np.asarray(vectors), np.asarray(ids)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind != "f":
        raise ValueError(
            f"vectors of shard {name!r} have shape {vectors.shape} and type {vectors.dtype}, but must be a matrix "
            "(rows, width) of floating-point numbers."
        )
    if ids.shape != vectors.shape[:1] or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"ids of shard {name!r} have shape {ids.shape} and type {ids.dtype}, but must be {len(vectors)} integers, "
            "one for each vector."
        )
    ids = ids.astype(np.int64)
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    problems = problems_of(vectors)
    reasons = np.where((problems == "") & repeated, "a repeated id", problems)
    good = reasons == ""
    unit = (vectors[good] / _norms(vectors[good])[:, None]).astype(np.float16)

    for file_name, array in ((f"{name}.ids.npy", ids[good]), (f"{name}.npy", unit)):
        with new_file(Path(folder) / file_name, overwrite=True) as path:
            np.save(path, array)
    rejected = [(int(ids[row]), str(reasons[row])) for row in np.flatnonzero(~good)]
    return WrittenShard(int(good.sum()), rejected)


def problems_of(vectors: np.ndarray) -> np.ndarray:
    """Why each of (n, D) vectors has no direction, (n,) texts: "zero", "not finite", or "" where it has one."""
    norms = _norms(vectors)
    return np.select([~np.isfinite(norms), norms == 0], ["not finite", "zero"], default="")


def _norms(vectors: np.ndarray) -> np.ndarray:
    """(n,) float64: in double precision no square of a float32 overflows."""
    return np.linalg.norm(vectors.astype(np.float64), axis=1)


def _allow_open_files() -> None:
    """Raise this process's limit of open files as far as it may: of the usual 1,024 a large store takes all."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class EmbeddingStore:
    """All shards of a folder as one sequence of unit vectors, of which only what is read is in memory.

    Args:
        folder: of the shards.
        pattern: of their names; hidden ones are passed over.

    Attributes:
        width: of the vectors.
        shard_names: in the order of their rows.
        offsets: (number of shards + 1,) the first row of each shard, and last the number of all rows.

    Raises:
        ValueError: there is no shard, a shard lacks its ids or has another number of them, or widths differ. Vectors
            without a direction raise when they are read, repeated ids when `ids` is.
    """

    def __init__(self, folder: str | os.PathLike, pattern: str = "*.npy"):
        self.folder = Path(folder)
        paths = sorted(path for path in self.folder.glob(pattern) if "/." not in f"/{path.relative_to(self.folder)}")
        paths = [path for path in paths if not path.name.endswith(".ids.npy")]
        if not paths:
            raise ValueError(f"folder {str(folder)!r} holds no shard of embeddings (NAME.npy with NAME.ids.npy).")
        self.shard_names = [str(path.relative_to(self.folder).with_suffix("")) for path in paths]
        _allow_open_files()
        self._vectors = [self._opened(path) for path in paths]
        for path, vectors in zip(paths, self._vectors, strict=True):
            self._read_ids(path, len(vectors))
        self.width = self._vectors[0].shape[1]
        for path, vectors in zip(paths, self._vectors, strict=True):
            if vectors.shape[1] != self.width:
                raise ValueError(
                    f"shard {path.name!r} has vectors of width {vectors.shape[1]}, but {paths[0].name!r} has "
                    f"{self.width}: a store holds the embeddings of one model."
                )
        self.offsets = np.cumsum([0, *map(len, self._vectors)])
        is_half = all(vectors.dtype == np.float16 for vectors in self._vectors)
        self._gathered_dtype = np.float16 if is_half else np.float32

    @staticmethod
    def _opened(path: Path) -> np.ndarray:
        try:
            vectors = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise ValueError(f"shard {str(path)!r} is no readable .npy file: {error}") from error
        if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind != "f":
            raise ValueError(
                f"shard {str(path)!r} has shape {vectors.shape} and type {vectors.dtype}, but must be a matrix "
                "(rows, width) of floating-point numbers."
            )
        return vectors

    @staticmethod
    def _read_ids(path: Path, num_rows: int) -> np.ndarray:
        """The ids of a shard, as a memory map; not kept, since each map holds a file open."""
        ids_path = path.with_suffix(".ids.npy")
        if not ids_path.exists():
            raise ValueError(f"shard {str(path)!r} lacks its ids, {ids_path.name!r}.")
        ids = np.load(ids_path, mmap_mode="r")
        if ids.shape != (num_rows,) or ids.dtype.kind not in "iu":
            raise ValueError(f"{str(ids_path)!r} has shape {ids.shape}, but must be {num_rows} integers.")
        return ids

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_shards(self) -> int:
        return len(self.shard_names)

    @property
    def ids(self) -> np.ndarray:
        """(n,) int64 ids of all rows; raises ValueError if one occurs twice."""
        ids = np.concatenate([self._ids(shard) for shard in range(self.num_shards)]).astype(np.int64, copy=False)
        ordered = np.sort(ids)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise ValueError(
                f"{len(np.unique(repeated))} ids occur more than once in {str(self.folder)!r}, the first is "
                f"{repeated[0]}: every image needs an id of its own."
            )
        return ids

    def _ids(self, shard: int) -> np.ndarray:
        return self._read_ids(self.folder / f"{self.shard_names[shard]}.npy", len(self._vectors[shard]))

    def shard_rows(self, shard: int) -> tuple[int, int]:
        """The first row of a shard and the first row after it."""
        return int(self.offsets[shard]), int(self.offsets[shard + 1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, across shards, (stop - start, D) float32 of unit length."""
        parts = []
        first_shard = int(np.searchsorted(self.offsets, start, side="right")) - 1
        for shard in range(first_shard, int(np.searchsorted(self.offsets, stop, side="left"))):
            first, end = self.shard_rows(shard)
            low, high = max(start, first), min(stop, end)
            if low < high:
                parts.append(_in_single_precision(self._vectors[shard][low - first : high - first]))
        found = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, self.width), np.float32)])
        return unit_rows(found, lambda row: self._name_of(start + row))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows in the given order, (len(rows), D) float32 of unit length."""
        rows = np.asarray(rows, dtype=np.int64)
        shards = np.searchsorted(self.offsets, rows, side="right") - 1
        stored = np.empty((len(rows), self.width), self._gathered_dtype)
        for shard in np.flatnonzero(np.bincount(shards)):
            places = np.flatnonzero(shards == shard)
            stored[places] = self._vectors[shard][rows[places] - self.offsets[shard]]
        return unit_rows(_in_single_precision(stored), lambda row: self._name_of(int(rows[row])))

    def _name_of(self, row: int) -> str:
        shard = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return f"id {self._ids(shard)[row - self.offsets[shard]]} in shard {self.shard_names[shard]!r}"


def _in_single_precision(stored: np.ndarray) -> np.ndarray:
    """A copy as float32; torch converts half precision 20 times faster than NumPy."""
    if stored.dtype != np.float16:
        return stored.astype(np.float32)
    return torch.from_numpy(np.require(stored, requirements=["C", "W"])).float().numpy()
