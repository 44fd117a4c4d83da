"""The images that each query should find: by the lists of the revisited Oxford and Paris, or by equal labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import datasets
import numpy as np

from ...features import require_column


LIST_COLUMNS = ("easy", "hard", "junk")
# For each difficulty, the lists of images to find, and the lists that are removed from the ranking.
DIFFICULTIES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


@dataclass(frozen=True)
class QueryTruth:
    """Rows of the database that one query should find, and rows to remove from its ranking."""

    relevant: np.ndarray
    junk: np.ndarray


def has_difficulties(queries: Any) -> bool:
    """Whether the queries have the lists of the revisited protocol."""
    columns = queries.column_names if isinstance(queries, datasets.Dataset) else list(queries[0])
    return set(LIST_COLUMNS) <= set(columns)


def truths_by_lists(queries: Any, database_size: int) -> dict[str, list[QueryTruth]]:
    """The truth of each query, for each difficulty.

    Raises:
        ValueError: a list contains something other than rows of the database, or a row is in two lists.
    """
    lists = {name: _column(queries, name) for name in LIST_COLUMNS}
    for row in range(len(queries)):
        together = [number for name in LIST_COLUMNS for number in lists[name][row] or ()]
        rows_there = range(database_size)
        bad = [number for number in together if not isinstance(number, Integral) or number not in rows_there]
        if bad or len(set(together)) < len(together):
            problem = f"hold {bad[0]!r}" if bad else "hold a number twice"
            raise ValueError(
                f"the columns easy, hard and junk of query {row} {problem}, but must list rows of the database, from 0"
                f" to {database_size - 1}, each at most once."
            )

    def rows(names: Sequence[str], row: int) -> np.ndarray:
        return np.array([number for name in names for number in lists[name][row] or ()], dtype=np.int64)

    return {
        difficulty: [QueryTruth(rows(relevant, row), rows(junk, row)) for row in range(len(queries))]
        for difficulty, (relevant, junk) in DIFFICULTIES.items()
    }


def instance_labels(dataset: Any, label_column: str) -> list[int | str | None]:
    """The label of each row: the name, if the column is a `ClassLabel`; None for a distractor.

    Raises:
        ValueError: a label is neither an integer, a string nor None.
    """
    require_column(dataset, label_column, "label_column")
    values = _column(dataset, label_column)
    feature = dataset.features[label_column] if isinstance(dataset, datasets.Dataset) else None
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    labels: list[Any] = []
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, Integral | str):
            raise ValueError(
                f"`label_column` {label_column!r} of row {row} is {value!r}, but must be an integer, a string or None."
            )
        labels.append(value)
    if names is not None:
        return [None if label is None or label < 0 else names[label] for label in labels]
    return labels


def check_kinds_of_labels(database: Sequence, queries: Sequence, label_column: str) -> None:
    """Raise a `ValueError` if names would be compared with numbers, or nothing can be found."""
    kinds = [{type(label) is str for label in labels if label is not None} for labels in (database, queries)]
    if not kinds[0] or len(kinds[0] | kinds[1]) > 1:
        raise ValueError(
            f"`label_column` {label_column!r} holds {'no labels' if not kinds[0] else 'names and numbers'} in the"
            " database and the queries; both must have labels of one kind."
        )
    if not set(database) & set(queries) - {None}:
        raise ValueError(
            f"`label_column` {label_column!r} has no label that a query shares with the database, so there is"
            " nothing to find."
        )


def truths_by_labels(database: Sequence, queries: Sequence) -> list[QueryTruth]:
    """For each query, the rows with its label; nothing is junk."""
    rows_of: dict[Any, list[int]] = {}
    for row, label in enumerate(database):
        rows_of.setdefault(label, []).append(row)
    nothing = np.empty(0, dtype=np.int64)
    return [
        QueryTruth(np.array(rows_of.get(label, ()) if label is not None else (), dtype=np.int64), nothing)
        for label in queries
    ]


def _column(dataset: Any, name: str) -> list:
    if isinstance(dataset, datasets.Dataset):
        return dataset.with_format(None)[name][:]
    return [row[name] for row in dataset]
