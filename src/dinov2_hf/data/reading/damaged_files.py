"""Finds and names damaged parquet files, tars and saved data sets."""

import os
import tarfile
from collections.abc import Sequence

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from pyarrow import parquet

from ..decoding.file_content import is_url


# Errors of reading a damaged file, here or inside `datasets`.
DAMAGE = (DatasetGenerationError, pa.ArrowException, tarfile.TarError, EOFError, UnicodeDecodeError)


def refuse_damaged(builder: str, files: Sequence[str]) -> None:
    """Check files of this machine one by one.

    Args:
        builder: "parquet" or "webdataset".
        files: paths; URLs are skipped.

    Raises:
        ValueError: one of them cannot be read; the message names it and says why.
    """
    for file in files:
        if is_url(file):
            continue
        try:
            if os.path.getsize(file) == 0:
                raise EOFError("it is empty")
            _read_parquet(file) if builder == "parquet" else _read_tar(file)
        except (*DAMAGE, OSError) as error:
            kind = "parquet file" if builder == "parquet" else "tar"
            raise ValueError(
                f"{file!r} is not a whole {kind} ({cause_of(error)}); get it again, or leave it out."
            ) from error


def load_saved(folder: str) -> datasets.Dataset | datasets.DatasetDict:
    """Load a folder that `save_to_disk` wrote.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return datasets.load_from_disk(folder)
    except (*DAMAGE, OSError, KeyError, ValueError) as error:
        raise ValueError(f"the saved data set {folder!r} cannot be read ({cause_of(error)}).") from error


def cause_of(error: BaseException) -> str:
    """The first cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _read_parquet(file: str) -> None:
    parquet.ParquetFile(file).close()  # reads the footer, which is at the end and gives all positions


def _read_tar(file: str) -> None:
    with tarfile.open(file) as tar:
        for _ in tar:
            pass
