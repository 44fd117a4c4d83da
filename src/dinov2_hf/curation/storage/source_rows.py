"""The rows of a source. Only what is asked for is read."""

from collections.abc import Sequence
from typing import Any, Protocol

import datasets

from ...data.reading.row_paths import refuse_unreadable_files, undecoded


class SourceRows(Protocol):
    """
    Attributes:
        features: the types of the columns; the type of the images is `datasets.Image(decode=False)`.
    """

    features: datasets.Features

    def __len__(self) -> int: ...

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """Columns of a row as they are stored: files are mappings of `bytes` and `path`.

        Raises:
            OSError, pa.ArrowException: reading fails.
            UndecodableImage: it is known without reading that this is not an image.
        """

    def refuse_unreadable_files(self, column: str) -> None:
        """
        Check that a column of files can be copied.

        Raises:
            ValueError: a row names a file that may not be read, or that is missing.
        """


class DatasetRows:
    """Rows of a table that is in memory or mapped into it.

    Args:
        dataset: its image column is undecoded.
    """

    def __init__(self, dataset: datasets.Dataset):
        self.dataset, self.features = dataset, dataset.features
        self._chosen: dict[tuple[str, ...], datasets.Dataset] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        columns = tuple(columns)
        if columns not in self._chosen:  # choosing columns takes longer than reading a row
            self._chosen[columns] = undecoded(self.dataset.select_columns(list(columns)).with_format(None))
        return self._chosen[columns][row]

    def refuse_unreadable_files(self, column: str) -> None:
        refuse_unreadable_files(self.dataset, column)
