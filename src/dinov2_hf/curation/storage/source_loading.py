"""Finds the rows of a source that a user names: which files are its images, or hold them.

| files | rows |
|---|---|
| a folder, by the rule of `data.reading.folders` | its images, or those in its parquet files or tars |
| a file, or a pattern with `*` | the images, or those in the parquet files or tars |
| CSV, JSON lines or parquet files with paths or addresses | the images that these name |
| the output of img2dataset | the images in its tars, files or parquet files |
"""

import os
import re
from collections import Counter
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ...data.decoding.file_content import is_url
from ...data.reading.damaged_files import cause_of
from ...data.reading.folders import KIND_OF_SUFFIX, content_of, named_split, say_what_is_read
from ...data.reading.image_columns import find_image_column
from ...data.reading.image_dataset import (
    ALL_SPLITS,
    dataset_of_files,
    images_of,
    one_after_the_other,
    roots_of,
    without_slice,
)
from ...data.reading.metadata_files import read_table
from ...data.reading.remote_files import open_url
from ...data.reading.row_paths import confined, holds_files
from . import parquet_rows, tar_rows
from .file_fingerprints import ABSENT, FileStates, fingerprint_of, paths_in, state_of
from .image_source import ImageSource
from .named_files import PATH_COLUMNS, rows_that_name_files
from .source_files import SourceFiles, counted_suffixes, files_of
from .source_listing import ListedContent, SourceListing, times_of


SAVED = ("state.json", "dataset_dict.json")  # of `save_to_disk`
MANIFEST_SUFFIXES = (".csv", ".jsonl")
KINDS = {**KIND_OF_SUFFIX, **dict.fromkeys(MANIFEST_SUFFIXES, "manifest")}


def look_through(source: ImageSource) -> SourceListing | None:
    """What a source holds. None: `datasets` opens it, since it is on the Hub, was saved, or has configurations.

    Raises:
        ValueError: it has no images, it is ambiguous, its files cannot be read, or there is no such split or column.
    """
    path = os.path.expanduser(source.path)
    is_saved = any(os.path.exists(os.path.join(path, name)) for name in SAVED)
    if is_saved or (source.config_name is not None and os.path.isdir(path)):
        return None
    found = files_of(path)
    if found is None:
        return None
    if source.config_name is not None:
        raise ValueError(
            f"config_name is {source.config_name!r}, but files such as those of {source.path!r} have no"
            " configurations; leave it out."
        )
    if found.is_folder:
        return _of_img2dataset(source, found) or _of_folder(source, found)
    kinds = {KINDS.get(suffix) for suffix in counted_suffixes(found.names)} - {None}
    if len(kinds) != 1:
        what = (
            f"files of {len(kinds)} kinds ({', '.join(sorted(kinds))})"
            if kinds
            else "not an image, parquet file or tar"
        )
        raise ValueError(
            f"the data set {source.path!r} is {what}; give a folder, images, .parquet or .tar files, a list of images"
            f" ({', '.join(MANIFEST_SUFFIXES)}), or the name of a data set on the Hub."
        )
    names = [name for name in found.names if KINDS.get(os.path.splitext(name)[1].lower()) in kinds]
    unread = dict(counted_suffixes(set(found.names) - set(names)).most_common())
    (kind,) = kinds
    if kind == "manifest":
        return _of_manifest(source, found, [read_manifest(path) for path in found.paths(names)], {"unread": unread})
    if kind == "image":
        return _of_images(source, found, names, dataset_of_files(found.paths(names)), {"unread": unread})
    return _packed(source, kind, found, names, {"unread": unread})


def is_img2dataset_tars(names: Sequence[str]) -> bool:
    """Tars with a parquet file of metadata beside each; the images are in the tars."""
    top = {name for name in names if os.sep not in name}
    return any(name.endswith(".tar") and f"{name.removesuffix('.tar')}.parquet" in top for name in top)


def is_img2dataset_files(names: Sequence[str]) -> bool:
    """Folders 00000, 00001, ... of image, .json and .txt files, with 00000.parquet beside them."""
    tables = {name for name in names if os.sep not in name and name.endswith(".parquet")}
    folders = {name.split(os.sep)[0] for name in names if os.sep in name} if tables else set()
    return any(re.fullmatch(r"\d{5,}", folder) and f"{folder}.parquet" in tables for folder in folders)


def _of_img2dataset(source: ImageSource, found: SourceFiles) -> SourceListing | None:
    if is_img2dataset_tars(found.names):
        tars = [name for name in found.names if os.sep not in name and name.endswith(".tar")]
        return _packed(source, "tar", found, tars, _unread(found, tars))
    if is_img2dataset_files(found.names):
        images = [name for name in found.names if name.endswith((".jpg", ".png", ".webp"))]
        dataset = dataset_of_files(found.paths(images))
        return _of_images(source, found, images, dataset, _unread(found, images))
    return None


def _unread(found: SourceFiles, names: Sequence[str]) -> dict[str, dict[str, int]]:
    rest = counted_suffixes(found.names)
    rest.subtract(counted_suffixes(names))
    return {"unread": {suffix: count for suffix, count in rest.most_common() if count}}


def _of_folder(source: ImageSource, found: SourceFiles) -> SourceListing:
    content = content_of(found.root, found.names, found.loops)
    say_what_is_read(content)
    wanted = source.split if content.kind == "image" else without_slice(source.split)
    chosen = [*content.splits] if source.split == ALL_SPLITS else [named_split(content.splits, wanted, source.path)]
    names = [name for split in chosen for name in content.splits[split]]
    told = {
        "splits": {split: len(files) for split, files in content.splits.items()},
        "unread": dict(content.unread.most_common()),
        "left_out": len(content.left_out),
    }
    if content.kind != "image":
        return _packed(source, content.kind, found, names, told)
    splits = {split: images_of(content, split) for split in chosen}
    dataset = next(iter(splits.values())) if len(splits) == 1 else one_after_the_other(splits, source.path)
    return _of_images(source, found, names, dataset, told, found.paths(content.metadata))


def _of_images(
    source: ImageSource, found: SourceFiles, names: Sequence[str], dataset: datasets.Dataset, told: dict,
    metadata: Sequence[str] = (),
) -> SourceListing:  # fmt: skip
    """A source whose rows are files."""
    column = find_image_column(dataset, source.image_column)
    others = [name for name, feature in dataset.features.items() if name != "image" and holds_files(feature)]
    if others:
        dataset = confined(dataset, [found.root])
    content = ListedContent("files", column, **told)
    counted = found.counted()
    fingerprint = fingerprint_of(found.paths([found.names[place] for place in counted]), found.states[counted])
    states = found.states_of(names)
    return SourceListing(content, dataset.data.table, dataset.features, states, fingerprint, _times(found, metadata))


def _times(found: SourceFiles, files: Sequence[str] = ()) -> bytes:
    """The times of everything that tells whether anything but the files of rows has changed."""
    if found.dated is None:
        return b""
    return times_of([] if is_url(found.root) else [*found.dated, *files])


def _packed(source: ImageSource, kind: str, found: SourceFiles, names: Sequence[str], told: dict) -> SourceListing:
    """A source whose rows are in parquet files or tars."""
    files = found.paths(names)
    if kind == "parquet":
        index, features = parquet_rows.index_of(files)
    else:
        index, features, others = tar_rows.index_of(files)
        told = {**told, "unread": dict(Counter(told["unread"]) + others)}
    if kind == "parquet" and _names_files(features, source.image_column):
        return _of_manifest(source, found, [read_manifest(file) for file in files], told)
    column = find_image_column(datasets.DatasetInfo(features=features), source.image_column)
    features[column] = datasets.Image(decode=False)
    index = _of_split(source, kind, index)
    roots = [found.root] if is_url(found.root) else roots_of(found.root)
    content = ListedContent(kind, column, **told, files=files, roots=roots)
    states = found.states_of(names)
    listing = SourceListing(content, index, features, states, "", _times(found, files))
    counted = found.counted()
    paths = found.paths([found.names[place] for place in counted])
    named = []
    if kind == "parquet":
        parts = listing.rows.files_named(column)
        named = [path for part in parts for path in paths_in(part.data.column(column).chunks)]
    others = FileStates(named)
    fingerprint = fingerprint_of(paths, found.states[counted], others.fingerprint() if named else "")
    return SourceListing(content, index, features, states, fingerprint, listing.times)


def _of_split(source: ImageSource, kind: str, index: pa.Table) -> pa.Table:
    """The rows of a slice, such as train[:1000]."""
    name = without_slice(source.split)
    if source.split in (ALL_SPLITS, name):
        return index
    count = sum(index["rows"].to_pylist()) if kind == "parquet" else len(index)
    try:
        (part,) = datasets.ReadInstruction.from_spec(source.split).to_absolute({name: count})
    except (AssertionError, ValueError) as error:
        raise ValueError(f"split is {source.split!r}, which is not a split or a slice of one ({error}).") from error
    start, stop = part.from_ or 0, count if part.to is None else part.to
    return parquet_rows.sliced(index, start, stop) if kind == "parquet" else index.slice(start, stop - start)


def read_manifest(path: str) -> pa.Table:
    """A table of paths or addresses of images, with any other columns.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if path.endswith(".parquet"):
            return parquet.read_table(open_url(path) if is_url(path) else path)
        return read_table(path)
    except Exception as error:  # clients of stores have no common class of errors
        raise ValueError(f"the list of images {path!r} cannot be read ({cause_of(error)}).") from error


def _names_files(features: datasets.Features, image_column: str | None) -> bool:
    """Whether rows name their images: the column of the images holds texts, or only a column of texts can be it."""
    if image_column is not None:
        return features.get(image_column) == datasets.Value("string")
    try:
        find_image_column(datasets.DatasetInfo(features=features))
    except ValueError:
        has_images = any(holds_files(feature) for feature in features.values())
        return not has_images and any(name.lower() in PATH_COLUMNS for name in features)
    return False


def _of_manifest(source: ImageSource, found: SourceFiles, tables: list[pa.Table], told: dict) -> SourceListing:
    try:
        table = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise ValueError(f"the lists of images of {source.path!r} cannot be read together ({error}).") from error
    dataset, column = rows_that_name_files(table, source, found.root)
    paths = [path for part in dataset.data.column(column).chunks for path in part.field("path").to_pylist()]
    states = [ABSENT if path is None or is_url(path) else state_of(path) for path in paths]
    states = np.array(states, np.int64).reshape(-1, 2)
    fingerprint = fingerprint_of(found.paths(), found.states, fingerprint_of(paths, states))
    content = ListedContent("files", column, **told)
    return SourceListing(
        content, dataset.data.table, dataset.features, states, fingerprint, _times(found, found.paths())
    )
