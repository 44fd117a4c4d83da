"""Which files the rows of a dataset may name: those inside the folder that the dataset itself lies in.

A row of a parquet file can hold a path in place of the bytes of an image, and whoever made the file chose the path.
If any were read, a downloaded dataset could put a private picture of its reader into a curated one. So `confined`
looks at every path of a dataset that is loaded by name. Relative paths count from the folder of the dataset. Paths are
compared as they are written: links inside the folder are followed, as they are in a folder of images.
"""

import os
from collections.abc import Sequence
from typing import Any

import datasets
import pyarrow as pa

from .outside_paths import OUTSIDE


def confined(
    dataset: datasets.Dataset | datasets.IterableDataset, roots: Sequence[str]
) -> datasets.Dataset | datasets.IterableDataset:
    """The dataset with all paths of its image columns inside of `roots`, or marked as forbidden.

    Args:
        dataset: its columns of type `datasets.Image` and `Video`, and lists of such, are looked at; of a stream those
            that are not decoded.
        roots: folders or URLs; the first is where relative paths count from.

    Returns:
        A dataset of the same rows and types. Rows with bytes keep their name; a path alone is made absolute.
    """
    columns = [name for name, feature in (dataset.features or {}).items() if _holds_paths(feature)]
    if isinstance(dataset, datasets.IterableDataset):
        return _confined_stream(dataset, columns, roots)
    table, is_changed = dataset.data.table, False
    for column in columns:
        chunks = table.column(column).chunks
        new = [_confined_array(chunk, roots) for chunk in chunks]
        if any(after is not before for after, before in zip(new, chunks, strict=True)):
            place = table.column_names.index(column)
            table, is_changed = table.set_column(place, table.schema.field(place), pa.chunked_array(new)), True
    if not is_changed:
        return dataset
    return datasets.Dataset(table, info=dataset.info.copy(), split=dataset.split, indices_table=dataset._indices)


def allowed_path(path: str, roots: Sequence[str]) -> str:
    """The path to open: absolute, and inside of one of the roots; or marked as forbidden."""
    if "://" in path:
        # Chained URLs, zip://a.jpg::hf://..., name the file that is really opened last.
        *inner, last = path.split("::")
        # A version of a Hub dataset stands behind its name: hf://datasets/owner/name@main/a.jpg.
        beginnings = tuple(f"{root}{end}" for root in roots if "://" in root for end in "/@")
        is_inside = last.startswith(beginnings)
        is_plain = ".." not in last.split("/") and all(part.startswith("zip://") for part in inner)
        return path if is_inside and is_plain else OUTSIDE + path
    if "://" in roots[0] and not os.path.isabs(path):
        return OUTSIDE + path
    absolute = os.path.normpath(os.path.join(roots[0], path))
    for root in roots:
        if "://" not in root and os.path.commonpath([root, absolute]) == root:
            return absolute
    return OUTSIDE + path


def _holds_paths(feature: Any) -> bool:
    if isinstance(feature, datasets.List | datasets.LargeList):
        return _holds_paths(feature.feature)
    return isinstance(feature, datasets.Image | datasets.Video)


def _confined_array(array: pa.Array, roots: Sequence[str]) -> pa.Array:
    """An array of structs of `bytes` and `path`, or of lists of them; the array itself where nothing is changed."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        inner = _confined_array(array.values, roots)
        if inner is array.values:
            return array
        return type(array).from_arrays(array.offsets, inner, type=array.type, mask=array.is_null())
    content, paths = array.field("bytes"), array.field("path")
    rows = content.is_null().to_numpy(zero_copy_only=False).nonzero()[0]
    if len(rows) == 0:
        return array
    new = paths.to_pylist()
    for row in rows:
        if new[row] is not None:
            new[row] = allowed_path(new[row], roots)
    # `field` shares the buffers: the bytes of the images are not copied.
    arrays = [content if field.name == "bytes" else pa.array(new, field.type) for field in array.type]
    return pa.StructArray.from_arrays(arrays, fields=list(array.type), mask=array.is_null())


def _confined_stream(
    dataset: datasets.IterableDataset, columns: list[str], roots: Sequence[str]
) -> datasets.IterableDataset:
    def confine(value: Any) -> Any:
        if isinstance(value, list):
            return [confine(item) for item in value]
        if not isinstance(value, dict) or value.get("path") is None:
            return value
        if value.get("bytes") is None:
            return {**value, "path": allowed_path(value["path"], roots)}
        # `datasets` prefers the file of this name to the bytes, wherever the name is that of a file.
        return {**value, "path": None} if os.path.isfile(value["path"]) else value

    def confine_row(row: dict[str, Any]) -> dict[str, Any]:
        return {column: confine(row[column]) for column in columns}

    columns = [name for name in columns if not getattr(dataset.features[name], "decode", True)]
    return dataset.map(confine_row, features=dataset.features) if columns else dataset
