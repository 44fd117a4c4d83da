"""Further columns for the images of a folder, by the `imagefolder` convention of `datasets`.

A file `metadata.csv`, `metadata.jsonl` or `metadata.parquet` has a row for each image of its folder, or of folders
below it: `file_name`, relative to the metadata file, and any other columns.
"""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv, json, parquet

from ..decoding.file_content import is_url
from .remote_files import filesystem_of


READERS = {".csv": csv.read_csv, ".jsonl": json.read_json, ".parquet": parquet.read_table}
METADATA_NAMES = frozenset(f"metadata{suffix}" for suffix in READERS)


def read_metadata(folder: str, metadata: Sequence[str], images: Sequence[str]) -> pa.Table:
    """The other columns of some images.

    Args:
        folder: the folder to which all paths are relative.
        metadata: the metadata files.
        images: the images.

    Returns:
        A row for each image, in their order, without `file_name`.

    Raises:
        ValueError: a metadata file cannot be read, has no `file_name` or other columns than the next, an image has two
            rows or none, or a column is called "image".
    """
    rows: dict[str, dict[str, Any]] = {}
    schema = None
    for name in metadata:
        table = _read(os.path.join(folder, name))
        if schema is not None and table.schema.names != schema.names:
            raise ValueError(
                f"the metadata files {metadata[0]} and {name} of {folder!r} have different columns:"
                f" {', '.join(schema.names)}; {', '.join(table.schema.names)}."
            )
        schema = schema or table.schema
        for row in table.to_pylist():
            path = os.path.normpath(os.path.join(os.path.dirname(name), str(row["file_name"])))
            if path in rows:
                raise ValueError(f"the metadata of {folder!r} has two rows for {path}.")
            rows[path] = row
    without = [image for image in images if image not in rows]
    if without:
        raise ValueError(
            f"the metadata of {folder!r} ({', '.join(metadata)}) has no row for {len(without)} of {len(images)}"
            f" images, such as {without[0]}; add their rows, or move the metadata out."
        )
    chosen = pa.Table.from_pylist([rows[image] for image in images], schema=schema)
    return chosen.drop_columns(["file_name"])


def read_table(path: str) -> pa.Table:
    """A file of `READERS`, at a path or an address."""
    reader = READERS[os.path.splitext(path)[1].lower()]
    if not is_url(path):
        return reader(path)
    store, name = filesystem_of(path)
    with store.open(name, "rb") as file:
        return reader(file)


def _read(path: str) -> pa.Table:
    try:
        table = read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"the metadata file {path!r} cannot be read ({error}).") from error
    if "file_name" not in table.column_names or "image" in table.column_names:
        raise ValueError(
            f"the metadata file {path!r} has the columns {', '.join(table.column_names)}, but it needs `file_name`,"
            " and none may be called `image`."
        )
    return table
