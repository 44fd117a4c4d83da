"""Restricts the files that rows of a dataset may name to the folder of the dataset.

A row of a parquet file can contain a path instead of the bytes of an image, and the author of the file chose the path.
If every path were read, a downloaded dataset could put a private picture of its reader into a curated dataset. So
`confined` checks every path of a dataset that is loaded by name. Relative paths are relative to the folder of the
dataset. Paths are compared as they are written: links inside the folder are followed, as in a folder of images.
Columns of other files are checked too, because they can be kept and are then read.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import pyarrow as pa

from ..decoding.file_content import OUTSIDE, is_url, outside_path, read_content


def confined(
    dataset: datasets.Dataset | datasets.IterableDataset, roots: Sequence[str]
) -> datasets.Dataset | datasets.IterableDataset:
    """The dataset with all paths of its columns of files inside of `roots`, or marked as forbidden.

    Args:
        dataset: its columns of files (images, videos, audio, documents, ...) are checked, however deep they are in
            lists and structs.
        roots: folders or URLs; relative paths are relative to the first.

    Returns:
        A dataset with the same rows and types. Rows with bytes keep their name; a path alone is made absolute. In a
        stream no column is decoded, because `datasets` would open the files of each column while reading.
    """
    columns = [name for name, feature in (dataset.features or {}).items() if holds_files(feature)]
    if isinstance(dataset, datasets.IterableDataset):
        return _confined_stream(dataset, columns, roots)
    table, is_changed = dataset.data.table, False
    for column in columns:
        chunks = table.column(column).chunks
        new = [_with_paths(chunk, dataset.features[column], partial(allowed_path, roots=roots)) for chunk in chunks]
        if any(after is not before for after, before in zip(new, chunks, strict=True)):
            place = table.column_names.index(column)
            table, is_changed = table.set_column(place, table.schema.field(place), pa.chunked_array(new)), True
    if not is_changed:
        return dataset
    return datasets.Dataset(table, info=dataset.info.copy(), split=dataset.split, indices_table=dataset._indices)


def confined_value(value: Any, feature: Any, roots: Sequence[str]) -> Any:
    """A stored value of a row, with the paths of its files confined as in `confined`."""

    def confine(file: dict[str, Any] | None) -> dict[str, Any] | None:
        if file is None or file["path"] is None or file.get("bytes") is not None:
            return file
        return {**file, "path": allowed_path(file["path"], roots)}

    return _with_files(value, feature, confine)


def allowed_path(path: str, roots: Sequence[str]) -> str:
    """The path to open: absolute, and inside of one of the roots; or marked as forbidden."""
    if is_url(path):
        # In chained URLs, zip://a.jpg::hf://..., the file that is really opened comes last.
        *inner, last = path.split("::")
        # The version of a Hub dataset comes after its name: hf://datasets/owner/name@main/a.jpg.
        beginnings = tuple(f"{root}{end}" for root in roots if is_url(root) for end in "/@")
        is_inside = last.startswith(beginnings)
        is_plain = ".." not in last.split("/") and all(part.startswith("zip://") for part in inner)
        return path if is_inside and is_plain else OUTSIDE + path
    if is_url(roots[0]) and not os.path.isabs(path):
        return OUTSIDE + path
    absolute = os.path.normpath(os.path.join(roots[0], path))
    for root in roots:
        if not is_url(root) and (absolute == root or absolute.startswith(os.path.join(root, ""))):
            return absolute
    return OUTSIDE + path


def holds_files(feature: Any) -> bool:
    """Whether values of a type are files that `datasets` reads by itself, or lists or structs of such files."""
    if isinstance(feature, Mapping):
        return any(holds_files(part) for part in feature.values())
    if isinstance(feature, datasets.List | datasets.LargeList):
        return holds_files(feature.feature)
    return hasattr(feature, "embed_storage")


def refuse_unreadable_files(dataset: datasets.Dataset, column: str) -> None:
    """
    Check that a column of files can be copied. `datasets` would read any file that a row names when it writes the row.

    Args:
        dataset: result of `confined`.

    Raises:
        ValueError: a row names a file that is forbidden, missing or not a regular file.
    """

    def refuse(path: str) -> str:
        outside = outside_path(path)
        if outside is not None:
            reason = f"{outside}, which lies outside of the folder of its dataset"
        elif not is_url(path) and not os.path.isfile(path):
            reason = f"{path}, which is missing or not a regular file"
        else:
            return path
        raise ValueError(f"the column {column!r} names the file {reason}; leave the column out.")

    for chunk in dataset.data.table.column(column).chunks:
        _with_paths(chunk, dataset.features[column], refuse)


def with_content(value: Any, feature: Any) -> Any:
    """
    A value of an `undecoded` dataset, with the bytes of its files instead of their paths.

    Raises:
        UndecodableImage, OSError: as `read_content`.
    """

    def read(file: dict[str, Any]) -> dict[str, Any] | None:
        is_empty = file["bytes"] is None and file["path"] is None
        # Without a name, because `datasets` prefers a named file to the bytes if it exists.
        return None if is_empty else {"bytes": read_content(file), "path": None}

    return _with_files(value, feature, read)


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The dataset with its files as they are stored, not decoded by `datasets`."""
    info = dataset.info.copy()
    info.features = datasets.Features({name: _undecoded(feature) for name, feature in dataset.features.items()})
    return datasets.Dataset(dataset.data.table, info=info, split=dataset.split, indices_table=dataset._indices)


def _undecoded(feature: Any) -> Any:
    if not holds_files(feature):
        return feature
    if isinstance(feature, Mapping):
        return {name: _undecoded(part) for name, part in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(feature, feature=_undecoded(feature.feature))
    return dataclasses.replace(feature, decode=False)


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def _with_paths(array: pa.Array, feature: Any, change: Callable[[str], str]) -> pa.Array:
    """
    An array of files, or of lists or structs of them, where the paths of files without bytes are changed; the array
    itself if nothing changes.
    """
    if not holds_files(feature):
        return array
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if _is_list(array.type):
        whole = pa.concat_arrays([array])  # in a slice, values and offsets would be those of the whole
        inner = _with_paths(whole.values, feature.feature, change)
        if inner is whole.values or inner.equals(whole.values):
            return array
        if pa.types.is_fixed_size_list(array.type):
            return pa.FixedSizeListArray.from_arrays(inner, type=array.type, mask=whole.is_null())
        return type(whole).from_arrays(whole.offsets, inner, type=array.type, mask=whole.is_null())
    # `field` shares the buffers, so the bytes of the images are not copied.
    before = [array.field(field.name) for field in array.type]
    if isinstance(feature, Mapping):
        new = [_with_paths(part, feature[field.name], change) for part, field in zip(before, array.type, strict=True)]
        if all(after is part for after, part in zip(new, before, strict=True)):
            return array
        return pa.StructArray.from_arrays(new, fields=list(array.type), mask=array.is_null())
    rows = array.field("bytes").is_null().to_numpy(zero_copy_only=False).nonzero()[0]
    if len(rows) == 0:
        return array
    paths = array.field("path").to_pylist()
    for row in rows:
        if paths[row] is not None:
            paths[row] = change(paths[row])
    new = [
        pa.array(paths, field.type) if field.name == "path" else part
        for part, field in zip(before, array.type, strict=True)
    ]
    return pa.StructArray.from_arrays(new, fields=list(array.type), mask=array.is_null())


def _with_files(value: Any, feature: Any, change: Callable[[dict[str, Any]], Any]) -> Any:
    """A value of a row with its files, mappings of `bytes` and `path`, changed."""
    if value is None or not holds_files(feature):
        return value
    if isinstance(feature, Mapping):
        return {name: _with_files(value[name], part, change) for name, part in feature.items()}
    if isinstance(feature, datasets.List | datasets.LargeList):
        return [_with_files(item, feature.feature, change) for item in value]
    return change(value)


def _confined_stream(
    dataset: datasets.IterableDataset, columns: list[str], roots: Sequence[str]
) -> datasets.IterableDataset:
    def confine(file: dict[str, Any]) -> dict[str, Any]:
        if file["path"] is None:
            return file
        if file.get("bytes") is None:
            return {**file, "path": allowed_path(file["path"], roots)}
        # `datasets` prefers the file of this name to the bytes if it exists.
        return {**file, "path": None} if os.path.isfile(file["path"]) else file

    def confine_row(row: dict[str, Any]) -> dict[str, Any]:
        return {column: _with_files(row[column], features[column], confine) for column in columns}

    if not columns:
        return dataset
    features = datasets.Features({name: _undecoded(feature) for name, feature in dataset.features.items()})
    return dataset.decode(False).map(confine_row, features=features)
