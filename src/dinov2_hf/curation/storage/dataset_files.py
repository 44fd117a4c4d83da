"""The dataset: parquet files that `load_dataset` reads."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from pyarrow import parquet

from ...data.reading.row_paths import holds_files
from ..run_context import Curation
from .manifests import MANIFEST
from .remote_dataset import SENT


# Rows are written in groups of this size, since readers hold a group in memory.
ROW_GROUP_IMAGES = 100


def dataset_features(curation: Curation) -> datasets.Features:
    """The columns of the dataset."""
    kept = curation.sources.column_features(curation.arguments.keep_columns)
    own = {
        "image": datasets.Image(),
        "id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "origin": datasets.Value("string"),
        "retrieved_for": datasets.Sequence(datasets.Value("string")),
        "times_retrieved": datasets.Value("int64"),
    }
    taken = sorted(set(kept) & set(own))
    if taken:
        raise ValueError(f"keep_columns has {taken[0]!r}, which is a column of every curated dataset.")
    return datasets.Features({**own, **kept})


class DatasetWriter:
    """Writes rows to `00000.parquet`, `00001.parquet`, ... of a folder; a context manager.

    Args:
        folder: for the files.
        features: of the columns.
        rows_per_file: rows in each file but the last.
        name: the format of a file's name, from its number.
        finished: called with each file when it is complete.
    """

    def __init__(
        self, folder: Path, features: datasets.Features, rows_per_file: int, name: str = "{:05d}.parquet",
        finished: Callable[[Path], None] = lambda path: None,
    ):  # fmt: skip
        self.folder, self.features, self.rows_per_file = folder, features, rows_per_file
        self.name, self.finished = name, finished
        self._path: Path | None = None
        self._file: parquet.ParquetWriter | None = None
        self._rows: list[dict] = []
        self._files = self._in_file = 0

    def __enter__(self) -> "DatasetWriter":
        return self

    def write(self, row: dict) -> None:
        self._rows.append(row)
        if len(self._rows) >= min(ROW_GROUP_IMAGES, self.rows_per_file - self._in_file):
            self._write_group()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None and self._rows:
            self._write_group()
        if self._file is not None:
            self._close(is_complete=kind is None)

    def _close(self, *, is_complete: bool = True) -> None:
        self._file.close()
        if is_complete:
            self.finished(self._path)
        self._file, self._in_file = None, 0

    def _write_group(self) -> None:
        if self._file is None:
            self._path = self.folder / self.name.format(self._files)
            self._file = parquet.ParquetWriter(self._path, self.features.arrow_schema)
            self._files += 1
        columns = {name: [row[name] for row in self._rows] for name in self.features}
        # Files are kept as they are stored; encoding them would need the library for their kind.
        for name in (name for name, feature in self.features.items() if not holds_files(feature)):
            columns[name] = self.features.encode_column(columns[name], name)
        self._file.write_table(pa.table(columns, schema=self.features.arrow_schema))
        self._in_file += len(self._rows)
        self._rows.clear()
        if self._in_file >= self.rows_per_file:
            self._close()


def built_files(curation: Curation) -> list[Path]:
    """The parquet files of all build shards, in order."""
    return [path for shard in curation.folders["build"].shards() for path in sorted(shard.glob("[0-9]*.parquet"))]


def sent_files(curation: Curation) -> list[dict[str, Any]]:
    """What the build shards sent to `dataset_url`: `name`, `rows`, `bytes` and `checksum` of each file, in order."""
    return [file for shard in curation.folders["build"].shards() for file in json.loads((shard / SENT).read_text())]


def content_fingerprint(curation: Curation) -> str:
    """Tells datasets apart: it changes with any byte of the files of all build shards."""
    digest = hashlib.blake2b(digest_size=8)
    for shard in curation.folders["build"].shards():
        files = json.loads((shard / MANIFEST).read_text())["files"]
        digest.update("".join(f"{name} {files[name]['checksum']}\n" for name in sorted(files)).encode())
    return digest.hexdigest()
