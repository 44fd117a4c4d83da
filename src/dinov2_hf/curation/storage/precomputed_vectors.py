"""Vectors that a user brings, read by row or by id."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from .sources import OpenSources


VECTOR_COLUMNS = ("features", "embedding", "embeddings", "vector")


class PrecomputedVectors:
    """Vectors in files.

    | file | vector of an image |
    |---|---|
    | `vectors.npy` | row `row_id`: all sources in their order, uncurated, curated, benchmarks |
    | `vectors.parquet` with `id` | the row whose id is `<source>/<row>` (or `<source>/<value of id_column>`) |
    | `vectors.parquet` with `row` | as `dinov2-hf features` writes it; one source only |
    | a folder | `<source>.npy` or `<source>.parquet` for each source, by rows of that source |

    Args:
        spec: the file or folder.
        sources: for their names and numbers.

    Raises:
        ValueError: a file is missing or cannot be read, has no column of vectors or the wrong number of rows, or
            repeats an id.
    """

    def __init__(self, spec: str, sources: OpenSources):
        self.path = Path(spec).expanduser()
        self.sources = sources
        for path, rows in self._files():
            if path.suffix == ".npy":
                self._array(path, len(rows))

    def _files(self) -> list[tuple[Path, range]]:
        """The files that exist, and the row ids that each file covers."""
        if not self.path.is_dir():
            return [(self.path, range(len(self.sources)))]
        names = [self.path / source.name for source in self.sources.sources]
        files = [[path for path in (Path(f"{name}.npy"), Path(f"{name}.parquet")) if path.exists()] for name in names]
        return [(found[0], self.sources.range_of(number)) for number, found in enumerate(files) if found]

    def vectors(self, row_ids: np.ndarray) -> tuple[list[int], np.ndarray, dict[int, str]]:
        """(places, (n, D) float32 vectors, reasons): which of these images have a vector, and why others have none."""
        row_ids = np.asarray(row_ids)
        ids = [self.sources.image_id(int(row)) for row in row_ids]
        found: dict[int, np.ndarray] = {}
        for place, vector in self._found(row_ids, ids):
            if place in found:
                raise ValueError(f"embedder {str(self.path)!r} has more than one vector for {ids[place]!r}.")
            found[place] = vector
        places = sorted(found)
        for place in places:
            if found[place].shape != found[places[0]].shape:
                raise ValueError(
                    f"embedder {str(self.path)!r} has a vector of shape {found[place].shape} for {ids[place]!r}, but"
                    f" one of {found[places[0]].shape} for {ids[places[0]]!r}: all must have the same width."
                )
        reasons = {place: "has no precomputed vector" for place in range(len(ids)) if place not in found}
        vectors = np.stack([found[place] for place in places]) if places else np.empty((0, 1))
        return places, vectors.astype(np.float32), reasons

    def _found(self, row_ids: np.ndarray, ids: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        """(place among the ids, vector) for the vectors that are there."""
        looked_at = np.zeros(len(row_ids), bool)
        for path, of_file in self._files():
            inside = (row_ids >= of_file.start) & (row_ids < of_file.stop)
            looked_at |= inside
            if not inside.any():
                continue
            rows = (row_ids[inside] - of_file.start).tolist()
            place_of = dict(zip(rows, np.flatnonzero(inside).tolist(), strict=True))
            if path.suffix == ".npy":
                array = self._array(path, len(of_file))
                yield from ((place, array[row]) for row, place in place_of.items())
            elif path is self.path and "id" in self._column_names(path):
                yield from self._from_table(path, "id", {id: place for place, id in enumerate(ids)})
            elif path is self.path and len(self.sources.sources) > 1:
                raise ValueError(
                    f"embedder {str(path)!r} has no column 'id', by which vectors of several sources are told apart;"
                    " give a folder with a file for each source."
                )
            else:
                yield from self._from_table(path, "row", place_of)
        if not looked_at.all():
            number, _ = self.sources.locate(int(row_ids[~looked_at][0]))
            name = self.sources.sources[number].name
            raise ValueError(f"embedder {str(self.path)!r} has no {name}.npy or {name}.parquet.")

    def _from_table(self, path: Path, key: str, place_of: dict) -> Iterator[tuple[int, np.ndarray]]:
        names = self._column_names(path)
        column = next((name for name in VECTOR_COLUMNS if name in names), None)
        if column is None or key not in names:
            raise ValueError(
                f"embedder {str(path)!r} has the columns {names}, but {key!r} and one of {', '.join(VECTOR_COLUMNS)}"
                " are needed."
            )
        # Row groups that hold none of the wanted keys in their range are not read.
        try:
            table = parquet.read_table(
                path, columns=[key, column], filters=[(key, ">=", min(place_of)), (key, "<=", max(place_of))]
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            kind = "integers" if key == "row" else "text"
            raise ValueError(f"embedder {str(path)!r} needs {kind} in the column {key!r}: {error}") from None
        for batch in table.to_batches():
            for name, vector in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
                if name in place_of and vector.is_valid:
                    values = vector.values
                    yield place_of[name], np.asarray(values if isinstance(values, pa.Array) else vector.as_py())

    @staticmethod
    def _column_names(path: Path) -> list[str]:
        try:
            return parquet.read_schema(path).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"embedder {str(path)!r} is not a readable parquet file: {error}") from None

    @staticmethod
    def _array(path: Path, rows: int) -> np.ndarray:
        """A file of vectors as a memory map, checked."""
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"embedder {str(path)!r} is not a readable .npy file of numbers: {error}") from None
        if array.ndim != 2 or len(array) != rows:
            raise ValueError(f"embedder {str(path)!r} has the shape {array.shape}, but {rows} vectors are needed.")
        return array
