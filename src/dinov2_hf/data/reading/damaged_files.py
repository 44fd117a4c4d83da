"""Parquet files, tars and saved data sets that are cut short or no such files: found and named."""

import os
import tarfile
from collections.abc import Sequence

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetGenerationError
from pyarrow import parquet

from ..decoding.file_content import is_url


# What reading a damaged file raises, here or inside `datasets`.
DAMAGE = (DatasetGenerationError, pa.ArrowException, tarfile.TarError, EOFError, UnicodeDecodeError)


def refuse_damaged(builder: str, files: Sequence[str]) -> None:
    """Look at files of this machine one by one.

    Args:
        builder: "parquet" or "webdataset".
        files: paths; URLs are passed over.

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
                f"{file!r} is no whole {kind} ({cause_of(error)}); get it again, or leave it out."
            ) from error


def load_saved(folder: str) -> datasets.Dataset | datasets.DatasetDict:
    """What `save_to_disk` wrote to a folder.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return datasets.load_from_disk(folder)
    except (*DAMAGE, OSError, KeyError, ValueError) as error:
        raise ValueError(f"the saved data set {folder!r} cannot be read ({cause_of(error)}).") from error


def cause_of(error: BaseException) -> str:
    """What began it, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _read_parquet(file: str) -> None:
    parquet.ParquetFile(file).close()  # its footer, which comes last and tells where everything is


def _read_tar(file: str) -> None:
    with tarfile.open(file) as tar:
        for _ in tar:
            pass
