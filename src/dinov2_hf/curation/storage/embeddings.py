"""The vectors of a pool of images: a folder of half-precision shards, read as memory maps.

A shard is two files, `NAME.npy` with the vectors and `NAME.ids.npy` with the id of each row. The rows of a store are
counted through its shards in the order of their names. So a row is a number in [0, n), which every later stage uses.
Ids are used again when results are written.

Shapes: `n` rows in all shards, `D` width.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...atomic_files import new_file
from ..algorithms.unit_vectors import unit_rows


OPEN_FILES = 65_536  # more than a process maps for a few stores with some thousand shards


def write_shard(folder: str | os.PathLike, name: str, vectors: np.ndarray, ids: Sequence[int]) -> None:
    """Write one shard, at unit length and in half precision; an older shard of this name is replaced.

    The vectors are written last, so a shard without ids is never seen. Half precision changes a cosine by less than
    0.001.

    Args:
        folder: of the store; made if missing.
        name: of the shard, without ending; rows are in the order in which the names sort.
        vectors: (rows, D), floating point; each has a direction, see `problems_of`.
        ids: (rows,) unique integers.

    Raises:
        ValueError: the arrays do not have these shapes or types, or a vector has no direction.
    """
    vectors, ids = np.asarray(vectors), np.asarray(ids)
    _check(name, vectors, ids)
    problems = problems_of(vectors)
    bad = np.flatnonzero(problems != "")
    if len(bad):
        raise ValueError(f"the vector of id {ids[bad[0]]} in shard {name!r} is {problems[bad[0]]}.")
    for file_name, array in ((f"{name}.ids.npy", ids.astype(np.int64)), (f"{name}.npy", stored_form(vectors))):
        with new_file(Path(folder) / file_name, overwrite=True) as path:
            np.save(path, array)


def stored_form(vectors: np.ndarray) -> np.ndarray:
    """(n, D) float16 of unit length; vectors that have this form already keep their numbers."""
    return vectors if vectors.dtype == np.float16 else (vectors / _norms(vectors)[:, None]).astype(np.float16)


def _check(name: str, vectors: np.ndarray, ids: np.ndarray) -> None:
    is_matrix = vectors.ndim == 2 and vectors.shape[1] > 0 and vectors.dtype.kind == "f"
    if not is_matrix or ids.shape != vectors.shape[:1] or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"shard {name!r} has {len(ids)} ids and vectors of shape {vectors.shape} and type {vectors.dtype}, but"
            " needs a matrix (rows, width) of floating-point numbers, and one integer for each row."
        )


def problems_of(vectors: np.ndarray) -> np.ndarray:
    """Why each of (n, D) vectors has no direction, (n,) texts: "zero", "not finite", or "" if it has one."""
    norms = _norms(vectors)
    return np.select([~np.isfinite(norms), norms == 0], ["not finite", "zero"], default="")


def _norms(vectors: np.ndarray) -> np.ndarray:
    """(n,) float64 lengths: in double precision no square of a float32 overflows."""
    return np.linalg.norm(vectors.astype(np.float64), axis=1)


def _allow_open_files() -> None:
    """Raise this process's limit of open files as far as allowed: a large store needs more than the usual 1,024."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
    if limit != resource.RLIM_INFINITY and limit < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class EmbeddingStore:
    """All shards of a folder as one sequence of unit vectors. Only what is read is in memory.

    Args:
        folder: of the shards.
        pattern: of their names; hidden shards are skipped.

    Attributes:
        width: of the vectors.
        shard_names: in the order of their rows.
        offsets: (number of shards + 1,) the first row of each shard, and at the end the number of all rows.

    Raises:
        ValueError: there is no shard, a shard lacks its ids or has another number of them, or widths differ. Vectors
            without a direction raise when they are read; repeated ids raise when `ids` is read.
    """

    def __init__(self, folder: str | os.PathLike, pattern: str = "*.npy"):
        self.folder = Path(folder)
        paths = sorted(path for path in self.folder.glob(pattern) if "/." not in f"/{path.relative_to(self.folder)}")
        paths = [path for path in paths if not path.name.endswith(".ids.npy")]
        if not paths:
            raise ValueError(f"folder {str(folder)!r} holds no shard of embeddings (NAME.npy with NAME.ids.npy).")
        self.shard_names = [str(path.relative_to(self.folder).with_suffix("")) for path in paths]
        _allow_open_files()
        self._vectors = [_opened(path) for path in paths]
        for name, vectors in zip(self.shard_names, self._vectors, strict=True):
            _check(name, vectors, self._ids(name))
        self.width = self._vectors[0].shape[1]
        for path, vectors in zip(paths, self._vectors, strict=True):
            if vectors.shape[1] != self.width:
                raise ValueError(
                    f"shard {path.name!r} has vectors of width {vectors.shape[1]}, but {paths[0].name!r} has "
                    f"{self.width}: a store holds the embeddings of one model."
                )
        self._dtype = np.result_type(*(vectors.dtype for vectors in self._vectors))
        self.offsets = np.cumsum([0, *map(len, self._vectors)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def ids(self) -> np.ndarray:
        """(n,) int64 ids of all rows; raises ValueError if one occurs twice."""
        ids = np.concatenate([self._ids(name) for name in self.shard_names]).astype(np.int64, copy=False)
        ordered = np.sort(ids)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise ValueError(
                f"{len(np.unique(repeated))} ids occur more than once in {str(self.folder)!r}, the first is "
                f"{repeated[0]}: every image needs an id of its own."
            )
        return ids

    def _ids(self, name: str) -> np.ndarray:
        """The ids of a shard, as a memory map. It is not kept, since each map holds a file open."""
        path = self.folder / f"{name}.ids.npy"
        if not path.exists():
            raise ValueError(f"shard {name!r} lacks its ids, {path.name!r}.")
        return _opened(path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`, across shards, (stop - start, D) float32 of unit length."""
        parts = []
        first_shard = int(np.searchsorted(self.offsets, start, side="right")) - 1
        for shard in range(first_shard, int(np.searchsorted(self.offsets, stop, side="left"))):
            first, end = self.offsets[shard], self.offsets[shard + 1]
            low, high = max(start, first), min(stop, end)
            if low < high:
                parts.append(_in_single_precision(self._vectors[shard][low - first : high - first]))
        found = parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, self.width), np.float32)])
        return unit_rows(found, lambda row: self._name_of(start + row))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The given rows in the given order, (len(rows), D) float32 of unit length."""
        stored = self.take_as_stored(rows)
        return unit_rows(_in_single_precision(stored), lambda row: self._name_of(int(rows[row])))

    def take_as_stored(self, rows: np.ndarray) -> np.ndarray:
        """The given rows in the given order, in the precision of the files, of a length near 1."""
        rows = np.asarray(rows, dtype=np.int64)
        order = None if (rows[1:] >= rows[:-1]).all() else np.argsort(rows, kind="stable")
        rising = rows if order is None else rows[order]
        if len(rows) and not (0 <= rising[0] and rising[-1] < len(self)):
            raise IndexError(f"rows from {rising[0]} to {rising[-1]} are wanted, but the store has {len(self)} rows.")
        found = np.empty((len(rows), self.width), self._dtype)
        cuts = np.searchsorted(rising, self.offsets)
        for shard in np.flatnonzero(np.diff(cuts)):
            place = slice(cuts[shard], cuts[shard + 1])
            within, vectors = rising[place] - self.offsets[shard], self._vectors[shard].view(np.ndarray)
            if vectors.dtype == found.dtype:  # in an eighth of the time that `vectors[within]` takes
                np.take(vectors, within, axis=0, out=found[place], mode="clip")
            else:
                found[place] = vectors[within]
        if order is None:
            return found
        in_given_order = np.empty_like(found)
        in_given_order[order] = found
        return in_given_order

    def _name_of(self, row: int) -> str:
        shard = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return (
            f"id {self._ids(self.shard_names[shard])[row - self.offsets[shard]]} in shard {self.shard_names[shard]!r}"
        )


def _opened(path: Path) -> np.ndarray:
    """A file of an array as a memory map."""
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not a readable .npy file: {error}") from error


def _in_single_precision(stored: np.ndarray) -> np.ndarray:
    """A copy as float32; torch converts half precision 20 times faster than NumPy."""
    if stored.dtype != np.float16:
        return stored.astype(np.float32)
    return torch.from_numpy(np.require(stored, requirements=["C", "W"])).float().numpy()
