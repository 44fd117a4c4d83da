"""Rows of parquet files. They are read where the files are, a row group at a time; nothing is copied."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import InMemoryTable, table_cast
from pyarrow import parquet

from ...data.decoding.file_content import is_url
from ...data.reading.damaged_files import cause_of
from ...data.reading.remote_files import open_url
from ...data.reading.row_paths import confined, confined_value, holds_files, refuse_unreadable_files


# For each row group: its file, its number in the file, the first of its rows that is read, and how many are read.
INDEX_SCHEMA = pa.schema({"file": pa.int32(), "group": pa.int32(), "first": pa.int64(), "rows": pa.int64()})
READERS = 16  # footers that are read at once


@lru_cache(maxsize=4)
def _opened(file: str, process: int) -> parquet.ParquetFile:
    """A file, kept open in this process: clients of stores do not work in a fork."""
    return parquet.ParquetFile(open_url(file) if is_url(file) else file, pre_buffer=is_url(file))


def index_of(files: Sequence[str]) -> tuple[pa.Table, datasets.Features]:
    """What the footers of files say.

    Args:
        files: paths or addresses, in the order of the rows.

    Returns:
        A table of `INDEX_SCHEMA`, and the types of all columns.

    Raises:
        ValueError: a file is damaged or cannot be read, or a column has another type than in an earlier file.
    """
    columns: dict[str, list[int]] = {name: [] for name in INDEX_SCHEMA.names}
    features = datasets.Features()
    with ThreadPoolExecutor(READERS) as pool:
        for number, (rows_of_groups, found) in enumerate(pool.map(_footer, files)):
            for column, feature in found.items():
                if features.setdefault(column, feature) != feature:
                    raise ValueError(
                        f"{files[number]!r} has a column {column!r} of type {feature}, but in files before it is of"
                        f" type {features[column]}: they cannot be read together."
                    )
            for group, rows in enumerate(rows_of_groups):
                for name, value in zip(columns, (number, group, 0, rows), strict=True):
                    columns[name].append(value)
    return pa.table(columns, schema=INDEX_SCHEMA), features


def _footer(file: str) -> tuple[list[int], datasets.Features]:
    """Rows of each row group, and the types of the columns."""
    try:
        if not is_url(file) and os.path.getsize(file) == 0:
            raise EOFError("it is empty")
        with parquet.ParquetFile(open_url(file) if is_url(file) else file) as opened:
            counts = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            return counts, datasets.Features.from_arrow_schema(opened.schema_arrow)
    except Exception as error:  # clients of stores have no common class of errors
        raise ValueError(
            f"{file!r} is not a whole parquet file ({cause_of(error)}); get it again, or leave it out."
        ) from error


def sliced(index: pa.Table, start: int, stop: int) -> pa.Table:
    """The index of rows `start` to `stop` alone."""
    rows = index["rows"].to_numpy()
    ends = np.cumsum(rows)
    first = np.clip(start - (ends - rows), 0, rows)
    last = np.clip(stop - (ends - rows), 0, rows)
    index = index.set_column(2, "first", pa.array(index["first"].to_numpy() + first))
    return index.set_column(3, "rows", pa.array(last - first)).filter(pa.array(last > first))


class ParquetRows:
    """
    Args:
        files: paths or addresses.
        index: see `INDEX_SCHEMA`.
        features: of the columns; a column is empty in files that do not have it.
        roots: where rows may name files, as in `row_paths`.
    """

    def __init__(self, files: Sequence[str], index: pa.Table, features: datasets.Features, roots: Sequence[str]):
        self.files, self.features, self.roots = list(files), features, roots
        self._file, self._group, self._first, self._rows = (index[name].to_numpy() for name in INDEX_SCHEMA.names)
        self._ends = np.cumsum(self._rows)
        self._read: dict[tuple[str, ...], tuple[int, pa.Table]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def file_numbers(self, rows: Sequence[int]) -> np.ndarray:
        """The number of the file of each row."""
        return self._file[np.searchsorted(self._ends, rows, side="right")]

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        place = int(np.searchsorted(self._ends, row, side="right"))
        table = self._table(place, tuple(columns))
        in_group = row - int(self._ends[place] - self._rows[place]) + int(self._first[place])
        found = table.slice(in_group, 1).to_pylist()[0]
        return {name: confined_value(found[name], self.features[name], self.roots) for name in columns}

    def _table(self, place: int, columns: tuple[str, ...]) -> pa.Table:
        """Columns of a row group. The last one is kept: rows are read in their order."""
        if self._read.get(columns, (None,))[0] != place:
            self._read.pop(columns, None)  # two groups need not be in memory together
            opened = _opened(self.files[self._file[place]], os.getpid())
            present = [name for name in columns if name in opened.schema_arrow.names]
            table = opened.read_row_group(int(self._group[place]), columns=present)
            for name in columns:
                if name not in present:
                    table = table.append_column(
                        name, pa.nulls(len(table), self.features.arrow_schema.field(name).type)
                    )
            wanted = datasets.Features({name: self.features[name] for name in columns})
            self._read[columns] = place, table_cast(table.select(columns), wanted.arrow_schema)
        return self._read[columns][1]

    def files_named(self, column: str) -> Iterator[datasets.Dataset]:
        """The row groups of one column in which rows may name files in place of holding them."""
        for place in range(len(self._file)):
            if self._may_name_files(place, column):
                table = self._table(place, (column,)).slice(int(self._first[place]), int(self._rows[place]))
                yield confined(datasets.Dataset(InMemoryTable(table), fingerprint="row group"), self.roots)

    def _may_name_files(self, place: int, column: str) -> bool:
        """Whether rows may name files, by what the footer says about their `bytes`; these are not read."""
        if not holds_files(self.features[column]):
            return False
        metadata = _opened(self.files[self._file[place]], os.getpid()).metadata
        group = metadata.row_group(int(self._group[place]))
        parts = [group.column(number) for number in range(group.num_columns)]
        parts = [part for part in parts if part.path_in_schema.split(".")[0] == column]
        content = [part for part in parts if part.path_in_schema.split(".")[-1] == "bytes"]
        if not content:  # the column holds the bytes alone, or paths alone
            return not all(part.physical_type == "BYTE_ARRAY" and part.path_in_schema == column for part in parts)
        return any(
            part.statistics is None or not part.statistics.has_null_count or part.statistics.null_count
            for part in content
        )

    def refuse_unreadable_files(self, column: str) -> None:
        for part in self.files_named(column):
            refuse_unreadable_files(part, column)
