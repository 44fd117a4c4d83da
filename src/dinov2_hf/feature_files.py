"""Writes features of a whole dataset to a file, batch by batch: parquet, npy or a `datasets` folder.

The output appears whole or not at all, see `atomic_files`.

Shapes: `n` rows of the dataset; `...` the shape of one feature, (D,), (num_layers * D,) or (h, w, D).
"""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import parquet
from torch import Tensor

from .atomic_files import check_new_file, check_new_folder, new_file, new_folder
from .data.reading.row_paths import refuse_unreadable_files
from .features import DatasetOrRows, FeatureExtractor, require_column


KIND = "features"  # of a folder, for its marker
PATH = "path"  # the column with the names of the image files
ORIGIN = b"dinov2_hf"  # key in the metadata of the Arrow schema
# Readers load whole row groups and keep a record of each, so batches of a few hundred kB are joined up to this size.
ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class WrittenFeatures:
    """What `write_features` wrote.

    Attributes:
        num_rows: images that have a feature.
        shape: of one feature, (D,), (num_layers * D,) or (h, w, D).
        undecodable_rows: the rows of the dataset whose image could not be decoded, and why.
        rule: how the feature was taken from the output of the model, in words; see `feature_kinds`.
    """

    num_rows: int
    shape: tuple[int, ...]
    undecodable_rows: dict[int, str]
    rule: str


def write_features(
    extractor: FeatureExtractor,
    dataset: DatasetOrRows,
    output: str | os.PathLike,
    *,
    kind: str = "cls",
    num_layers: int = 4,
    keep_columns: Sequence[str] | None = None,
    dtype: str = "float32",
    overwrite: bool = False,
    sources: Iterable[str | os.PathLike] = (),
) -> WrittenFeatures:
    """Write the feature of every image of a dataset to `output`. The ending of its name determines the format.

    `*.parquet`, and a folder that `datasets.load_from_disk` opens (a name without an ending), are tables with the
    columns `row` (the row of `dataset`, int64), the kept columns with their `datasets` types (a `ClassLabel` keeps its
    names), and `features` (a list of fixed length, or `datasets.Array3D` for patch grids). If the dataset knows the
    names of its image files, the kept columns include `path` (str): the path of the file on this machine, or the name
    that is stored with the bytes of the image. Tables leave out rows whose image cannot be decoded. The metadata of
    the parquet schema (key `dinov2_hf`) and the description of the dataset contain, as JSON, the model of the features
    and how they were taken. `Dataset.from_parquet`, `load_dataset("parquet", ...)` and `load_from_disk` restore all
    types, and `.with_format("numpy")` gives patch grids as (rows, h, w, D) arrays. A folder needs twice its size
    on the disk while it is written.

    `*.npy` is one array (n, ...) in the order of the dataset. Open it with `numpy.load(..., mmap_mode="r")`. It cannot
    leave rows out: row i always belongs to row i of the dataset, and a row whose image cannot be decoded is NaN.

    Args:
        extractor: the model, and how it is run.
        dataset, kind, num_layers: as in `FeatureExtractor.batches`.
        output: the file or folder; missing folders above it are made.
        keep_columns: columns of the dataset to copy into a table, and `path`. None: all but the images. A sequence of
            dict rows is read once more for them. Columns called `row` or `features` cannot be kept. A column of the
            dataset called `path` is kept in place of the names of the files.
        dtype: "float32", or "float16" for half the size at a relative precision of 1/2048.
        overwrite: replace an existing `output`: a file, or a folder of features that this function wrote and to which
            no file was added.
        sources: paths that `dataset` and `model` were loaded from. `output` must not be one of them, be inside one or
            contain one. The files that `dataset` uses need not be listed.

    Returns:
        The number of images with a feature, the shape of a feature, and the undecodable rows.

    Raises:
        ValueError: before the first image, if `check_output` refuses `output`, another process is writing it, or
            `dtype` or `keep_columns` cannot be used; later, if a value is beyond float16 or the disk is full; and the
            errors of `FeatureExtractor.batches`, except that an undecodable image is not an error.
    """
    output = Path(output)
    sources = [*sources, *_files_of(dataset)]
    check_output(output, overwrite=overwrite, sources=sources)
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype={dtype!r} is not a type for features; use 'float32' or 'float16'.")
    suffix = _suffix(output)
    if suffix == ".npy" and keep_columns is not None:
        raise ValueError(
            f"keep_columns={list(keep_columns)} cannot be kept in {output}, because a .npy file holds only features;"
            " write a .parquet file or a folder."
        )
    require_column(dataset, extractor.image_column, "image_column")
    kept = None if suffix == ".npy" else _kept_columns(dataset, extractor.image_column, keep_columns)
    batches = extractor.batches(dataset, kind=kind, num_layers=num_layers, skip_undecodable=True)
    with _new_output(output, overwrite, sources) as unfinished:
        first = next(batches)  # gives the shape
        shape = tuple(first[1].shape[1:])
        arrays = ((rows, _as_dtype(features, dtype, rows)) for rows, features in chain([first], batches))
        if suffix == ".npy":
            _write_npy(unfinished, arrays, (len(dataset), *shape), dtype)
        else:
            origin = {"model": _name_of(extractor.model), "kind": kind, "rule": batches.rule}
            schema = _table_features(kept, shape, dtype).arrow_schema
            schema = schema.with_metadata({**schema.metadata, ORIGIN: json.dumps(origin)})
            tables = _grouped(_tables(arrays, kept, schema))
            write = _write_parquet if suffix == ".parquet" else _write_dataset_folder
            write(unfinished, tables, schema)
    left_out = batches.undecodable_rows
    return WrittenFeatures(len(dataset) - len(left_out), shape, left_out, batches.rule or "")


def check_output(output: str | os.PathLike, *, overwrite: bool, sources: Iterable[str | os.PathLike] = ()) -> None:
    """The checks of `write_features` on its output, for a command that must make them before it loads anything.

    Raises:
        ValueError: the ending of `output` is not a format, or `new_file` or `new_folder` refuses it.
    """
    output = Path(output)
    if _suffix(output):
        check_new_file(output, overwrite=overwrite, sources=sources)
    else:
        check_new_folder(output, KIND, overwrite=overwrite, sources=sources)


def _new_output(output: Path, overwrite: bool, sources: Iterable) -> AbstractContextManager[Path]:
    if _suffix(output):
        return new_file(output, overwrite=overwrite, sources=sources)
    return new_folder(output, KIND, overwrite=overwrite, sources=sources)


def _suffix(output: Path) -> str:
    """The format by its ending, which is empty for a folder."""
    suffix = output.suffix.lower()
    if suffix in (".parquet", ".npy"):
        return suffix
    # A folder may be called dinov2_v1.5, but features.csv should not become a folder.
    if re.match(r"\.[a-z]", suffix):
        raise ValueError(
            f"output is {str(output)!r}, but must end in .parquet or .npy, or have no ending for a folder."
        )
    return ""


def _name_of(model: torch.nn.Module) -> str:
    """The folder or Hub id that a model was loaded from, or else its class."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or type(model).__name__


def _files_of(dataset) -> list[str]:
    """The files that a dataset reads while features are written."""
    return [file["filename"] for file in getattr(dataset, "cache_files", ())]


def _kept_columns(dataset, image_column: str, keep_columns: Sequence[str] | None) -> datasets.Dataset:
    """The columns to copy, without any format, as rows of Arrow tables."""
    is_typed = isinstance(dataset, datasets.Dataset)
    if is_typed:
        dataset = _with_image_paths(dataset, image_column)
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
            f"keep_columns would copy {taken[0]!r}, but the output has its own column of this name: rename it in the "
            "dataset or leave it out of keep_columns."
        )
    for name in names if is_typed else ():
        refuse_unreadable_files(dataset, name)
    # The stored values unchanged: a kept image is not decoded and encoded again.
    return dataset.select_columns(names).with_format("arrow")


def _with_image_paths(dataset: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """With a column `path`, the stored names of the image files, where there are any and the name is free."""
    if PATH in dataset.column_names or not isinstance(dataset.features[image_column], datasets.Image):
        return dataset
    table = dataset.data.table
    paths = pc.struct_field(table.column(image_column), "path")  # a view, without the bytes of the images
    if paths.null_count == len(paths):
        return dataset
    info = dataset.info.copy()
    info.features = datasets.Features({**dataset.features, PATH: datasets.Value("string")})
    return datasets.Dataset(
        table.append_column(PATH, paths), info=info, split=dataset.split, indices_table=dataset._indices
    )


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
    dataset = datasets.Dataset.from_file(str(stream))
    dataset.info.description = schema.metadata[ORIGIN].decode()
    dataset.save_to_disk(path)


def _write_npy(
    path: Path, batches: Iterable[tuple[list[int], np.ndarray]], shape: tuple[int, ...], dtype: str
) -> None:
    """Write row after row, with NaN for rows that are in no batch."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    missing = np.full(shape[1:], np.nan, dtype).tobytes()
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        _reserve(file.fileno(), file.tell() + shape[0] * len(missing))
        num_written = 0
        for rows, features in batches:
            for row, feature in zip(rows, features, strict=True):
                file.writelines(repeat(missing, row - num_written))
                file.write(feature.tobytes())
                num_written = row + 1
            file.flush()
        file.writelines(repeat(missing, shape[0] - num_written))


def _reserve(handle: int, num_bytes: int) -> None:
    """Reserve space on the disk, so that a full disk is known before hours of work. Not all systems can do that."""
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
