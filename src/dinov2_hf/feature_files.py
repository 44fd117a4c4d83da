"""Features of a whole dataset to a file, batch by batch: parquet, npy or a `datasets` folder.

Every format is written into a hidden folder next to its place and moved there when it is complete, so an error leaves
nothing behind.

Shapes: `n` rows of the dataset; `...` the shape of one feature, (D,), (num_layers * D,) or (h, w, D).
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor, nn

from .features import iterate_features, require_column


# Readers load a row group whole and keep a record of each: batches of a few hundred kB are gathered to this.
ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class WrittenFeatures:
    """What `write_features` wrote.

    Attributes:
        num_rows: images that have a feature.
        shape: of one feature, (D,), (num_layers * D,) or (h, w, D).
        undecodable_rows: the rows of the dataset whose image could not be decoded, and why.
    """

    num_rows: int
    shape: tuple[int, ...]
    undecodable_rows: dict[int, str]


def write_features(
    model: nn.Module,
    dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    output: str | os.PathLike,
    *,
    kind: str = "cls",
    num_layers: int = 4,
    image_column: str = "image",
    keep_columns: Sequence[str] | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> WrittenFeatures:
    """Write the feature of every image of a dataset to `output`, whose name says the format.

    `*.parquet`, and a folder that `datasets.load_from_disk` opens (a name without an ending), are tables with the
    columns `row` (the row of `dataset`, int64), the kept columns with their `datasets` types (a `ClassLabel` keeps its
    names), and `features` (a list of fixed length, or `datasets.Array3D` for patch grids). Rows whose image cannot be
    decoded are left out of them. `Dataset.from_parquet`, `load_dataset("parquet", ...)` and `load_from_disk` give all
    types back, and `.with_format("numpy")` gives patch grids as (rows, h, w, D) arrays. A folder needs twice its room
    on the disk while it is written.

    `*.npy` is one array (n, ...) in the order of the dataset, to be opened with `numpy.load(..., mmap_mode="r")`. It
    cannot say which row it leaves out, so row i always belongs to row i of the dataset, and a row whose image cannot
    be decoded is NaN.

    Args:
        model, dataset, image_processor, kind, num_layers, image_column, batch_size, device, autocast_dtype,
            num_workers, progress: as in `features.iterate_features`.
        output: the file or folder; missing folders above it are made.
        keep_columns: columns of the dataset to copy into a table. None: all but the images. A sequence of dict rows
            is read once more for them. Columns called `row` or `features` cannot be kept.
        dtype: "float32", or "float16" for half the size at a relative precision of 1/2048.
        overwrite: replace the `output` that is there: a file, or a folder that holds a saved dataset or nothing.

    Returns:
        The number of images with a feature, the shape of a feature, and the undecodable rows.

    Raises:
        ValueError: before the first image, where `output` is there already or has an ending that is no format, or
            `dtype` or `keep_columns` cannot be used; later, where a value is beyond float16; and what
            `iterate_features` raises, except that an undecodable image is no error.
    """
    output = Path(output)
    suffix = _checked_suffix(output, overwrite)
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={dtype!r} is no type for features, which is 'float32' or 'float16'.")
    if suffix == ".npy" and keep_columns is not None:
        raise ValueError(
            f"keep_columns={list(keep_columns)} cannot be kept in {str(output)!r}, as a .npy file holds nothing but "
            "features: write a .parquet file or a folder."
        )
    require_column(dataset, image_column, "image_column")
    kept = None if suffix == ".npy" else _kept_columns(dataset, image_column, keep_columns)
    undecodable_rows = {}
    batches = iterate_features(
        model,
        dataset,
        image_processor,
        kind=kind,
        num_layers=num_layers,
        image_column=image_column,
        batch_size=batch_size,
        device=device,
        autocast_dtype=autocast_dtype,
        num_workers=num_workers,
        progress=progress,
        undecodable_rows=undecodable_rows,
    )
    first = next(batches)  # tells the shape
    shape = tuple(first[1].shape[1:])
    batches = ((rows, _as_dtype(features, dtype, rows)) for rows, features in chain([first], batches))

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        unfinished = Path(folder) / "features"
        if suffix == ".npy":
            _write_npy(unfinished, batches, (len(dataset), *shape), dtype, undecodable_rows)
        else:
            schema = _table_features(kept, shape, dtype).arrow_schema
            tables = _grouped(_tables(batches, kept, schema))
            write = _write_parquet if suffix == ".parquet" else _write_dataset_folder
            write(unfinished, tables, schema)
        if output.is_dir():
            output.rename(Path(folder) / "replaced")
        unfinished.replace(output)
    return WrittenFeatures(len(dataset) - len(undecodable_rows), shape, undecodable_rows)


def _checked_suffix(output: Path, overwrite: bool) -> str:
    """The format by its ending, which is empty for a folder."""
    suffix = output.suffix.lower()
    if suffix not in (".parquet", ".npy"):
        # A folder may be called dinov2_v1.5, but features.csv would surprise as a folder.
        if re.match(r"\.[a-z]", suffix):
            raise ValueError(
                f"output is {str(output)!r}, but must end in .parquet or .npy, or have no ending for a folder."
            )
        suffix = ""
    if not os.path.lexists(output):
        return suffix
    if not overwrite:
        raise ValueError(
            f"output is {str(output)!r}, which exists already; choose another name or set overwrite=True."
        )
    if output.is_dir() != (suffix == ""):
        found, wanted = ("folder", "file") if output.is_dir() else ("file", "folder")
        raise ValueError(f"output is {str(output)!r}, a {found} that is not replaced by a {wanted}: remove it first.")
    if suffix == "" and any(output.iterdir()) and not (output / "dataset_info.json").exists():
        raise ValueError(f"output is {str(output)!r}, a folder of other things than a dataset: choose another name.")
    return suffix


def _kept_columns(dataset, image_column: str, keep_columns: Sequence[str] | None) -> datasets.Dataset:
    """The columns to copy, without any format, as rows of Arrow tables."""
    is_typed = isinstance(dataset, datasets.Dataset)
    columns = dataset.column_names if is_typed else list(dataset[0])
    names = [name for name in columns if name != image_column] if keep_columns is None else list(keep_columns)
    if isinstance(keep_columns, str) or not set(names) <= set(columns):
        raise ValueError(
            f"keep_columns={keep_columns!r} must be a list of columns of the dataset, which has {columns}."
        )
    if not is_typed:
        dataset = datasets.Dataset.from_list([{name: row[name] for name in names} for row in dataset])
    if keep_columns is None:
        names = [name for name in names if not isinstance(dataset.features[name], datasets.Image)]
    taken = [name for name in names if name in ("row", "features")]
    if taken:
        raise ValueError(
            f"keep_columns would copy {taken[0]!r}, which is the name of a column that is written: rename it in the "
            "dataset or leave it out of keep_columns."
        )
    # The stored values as they are: an image that somebody keeps is not decoded and encoded again.
    return dataset.select_columns(names).with_format("arrow")


def _table_features(kept: datasets.Dataset, shape: tuple[int, ...], dtype: str) -> datasets.Features:
    if len(shape) == 1:
        feature = datasets.List(datasets.Value(dtype), length=shape[0])
    else:
        feature = datasets.Array3D(shape, dtype)
    return datasets.Features({"row": datasets.Value("int64"), **kept.features, "features": feature})


def _as_dtype(features: Tensor, dtype: str, rows: list[int]) -> np.ndarray:
    converted = features.to(getattr(torch, dtype))
    overflown = (converted.isinf() & features.isfinite()).flatten(1).any(dim=1)
    if overflown.any():
        raise ValueError(
            f"dtype='float16' cannot hold the features of row {rows[int(overflown.int().argmax())]}, which exceed "
            "65504: use dtype='float32'."
        )
    return converted.numpy()


def _tables(
    batches: Iterable[tuple[list[int], np.ndarray]], kept: datasets.Dataset, schema: pa.Schema
) -> Iterator[pa.Table]:
    for rows, features in batches:
        columns = kept[rows].columns if kept.column_names else []
        arrays = [pa.array(rows, pa.int64()), *columns, _feature_array(features, schema.field("features").type)]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _feature_array(features: np.ndarray, arrow_type: pa.DataType) -> pa.Array:
    """(rows, D) as lists of fixed length, (rows, h, w, D) as `datasets.Array3D`, which is nested lists."""
    values = pa.array(features.reshape(-1))
    if features.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(values, type=arrow_type)
    for size in reversed(features.shape[1:]):
        values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, size, dtype=np.int32), values)
    return pa.ExtensionArray.from_storage(arrow_type, values)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Neighbouring tables joined to `ROW_GROUP_BYTES` or a little more."""
    group, num_bytes = [], 0
    for table in tables:
        group.append(table)
        num_bytes += table.nbytes
        if num_bytes >= ROW_GROUP_BYTES:
            yield pa.concat_tables(group)
            group, num_bytes = [], 0
    if group:
        yield pa.concat_tables(group)


def _write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with parquet.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _write_dataset_folder(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    stream = path.with_suffix(".arrow")
    with pa.ipc.new_stream(stream, schema) as writer:
        for table in tables:
            writer.write_table(table)
    # Mapped into memory, not read, and split into files of the usual size.
    datasets.Dataset.from_file(str(stream)).save_to_disk(path)


def _write_npy(
    path: Path,
    batches: Iterable[tuple[list[int], np.ndarray]],
    shape: tuple[int, ...],
    dtype: str,
    undecodable_rows: dict[int, str],
) -> None:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    for rows, features in batches:
        array[rows] = features
    array[list(undecodable_rows)] = np.nan  # known only after the last batch
    array.flush()
