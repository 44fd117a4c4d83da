"""Loads images from folders, parquet files, saved data sets, WebDataset tars and the Hub."""

import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.table import InMemoryTable
from huggingface_hub.constants import HF_HUB_CACHE

from ..decoding.file_content import is_url
from .damaged_files import DAMAGE, cause_of, load_saved, refuse_damaged
from .folders import FolderContent, named_split, read_folder, say_what_is_read
from .image_columns import find_image_column
from .metadata_files import read_metadata
from .row_paths import confined


BUILDER_OF_SUFFIX = {".parquet": "parquet", ".tar": "webdataset"}
ALL_SPLITS = "all"
# Shards of a folder that is read as a stream: enough to feed several workers on several machines.
MAX_STREAM_SHARDS = 128


def load_image_dataset(
    path_or_name: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load images, leaving them undecoded.

    Nothing is decoded here, so empty or broken files are only found by `decode_image`. Rows that name files instead of
    bytes may only name files in the folder of the dataset (`row_paths`).

    Args:
        path_or_name: one of a folder of images, parquet files or tars, read by the rules of `folders` in the order of
            the paths; class folders become a `label` column (`ClassLabel`); a folder written by `save_to_disk`; a
            parquet file, WebDataset tar, or a glob of either: all rows make up the one split asked for; the name of a
            data set on the Hub.
        split: the split to load; "all": every split, one after the other. A slice, such as train[:1000], is possible
            for parquet files, tars and the Hub.
        config_name: the configuration of a Hub data set or of a local copy of one.
        image_column: the column of the images; by default the one that `find_image_column` finds.
        streaming: read while iterating, with no copy on disk and no random access.
        cache_dir, token, revision: as in `datasets.load_dataset`.

    Returns:
        The data set. Its image column is `datasets.Image(decode=False)`, which gives mappings of `bytes` and `path`.

    Raises:
        ValueError: the path does not exist and is not a Hub name, it contains no images or is ambiguous, a parquet
            file or tar is damaged, or the split or the column is missing; the message lists the existing splits or
            columns.
    """
    path, options = os.path.expanduser(path_or_name), {"streaming": streaming, "cache_dir": cache_dir}
    if os.path.isdir(path):
        # Otherwise names of files would be relative to this folder, and names in rows to that one.
        path = os.path.abspath(path)
        dataset = _load_folder(path, split, config_name, options)
    elif Path(path).suffix in BUILDER_OF_SUFFIX:
        if config_name is not None:
            raise ValueError(
                f"config_name is {config_name!r}, but parquet files and tars have no configurations; leave it out."
            )
        is_one = is_url(path) or os.path.exists(path)
        files = [path] if is_one else sorted(glob.glob(path, recursive=True))
        if not files:
            raise ValueError(f"the data set {path!r} matches no file.")
        dataset = _load_packed(BUILDER_OF_SUFFIX[Path(path).suffix], files, split, {**options, "token": token})
    elif re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path_or_name) and not os.path.exists(path):
        try:
            options |= {"token": token, "revision": revision}
            dataset = datasets.load_dataset(path_or_name, config_name, split=split, **options)
        except (FileNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"the data set {path_or_name!r} is not a path on this machine, and could not be loaded from the Hub "
                f"({error})."
            ) from error
    else:
        problem = "is not a folder, parquet file or tar" if os.path.exists(path) else "does not exist"
        raise ValueError(
            f"the data set {path_or_name!r} {problem}; give a folder, a .parquet or .tar file, a glob of such files, "
            "or the name of a data set on the Hub."
        )
    try:
        column = find_image_column(dataset, image_column)
    except DAMAGE as error:  # a stream without types is read for the first time
        raise ValueError(f"the data set {path_or_name!r} cannot be read ({cause_of(error)}).") from error
    return confined(dataset.cast_column(column, datasets.Image(decode=False)), roots_of(path, cache_dir))


def evaluation_split(path_or_name: str, option: str = "--eval_split") -> str:
    """The split to evaluate on if the user names none: "test", else "validation", else the only split.

    A parquet file or tar is one split under any name, and the Hub is not asked: both are "test". So is data that
    cannot be read, because loading it gives the reason.

    Args:
        path_or_name: as in `load_image_dataset`.
        option: the option by which the user names a split.

    Raises:
        ValueError: a folder has several splits, but none of these.
    """
    path = os.path.expanduser(path_or_name)
    if not os.path.isdir(path) or os.path.exists(os.path.join(path, "state.json")):
        return "test"
    if os.path.exists(os.path.join(path, "dataset_dict.json")):
        splits = list(load_saved(path))
    else:
        try:
            splits = list(read_folder(path).splits)
        except ValueError:
            return "test"
    for split in ("test", "validation", *(splits if len(splits) == 1 else ())):
        if split in splits:
            return split
    raise ValueError(
        f"the data set {path_or_name!r} has the splits {', '.join(splits)}, and none of them is called test or"
        f" validation: name the one to evaluate on, {option}."
    )


def roots_of(path_or_name: str, cache_dir: str | None = None) -> list[str]:
    """The folders in which rows of a dataset may name files: its own folder, and the download caches of `datasets`.

    Args:
        path_or_name, cache_dir: as in `load_image_dataset`.
    """
    if os.path.isdir(path_or_name):
        own = os.path.abspath(path_or_name)
    elif is_url(path_or_name):
        own = path_or_name.rpartition("/")[0]
    elif os.path.exists(path_or_name) or Path(path_or_name).suffix in BUILDER_OF_SUFFIX:
        own = os.path.dirname(os.path.abspath(path_or_name))
        while glob.has_magic(own) and not os.path.exists(own):
            own = os.path.dirname(own)
    else:
        own = f"hf://datasets/{path_or_name}"
    caches = (cache_dir, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return [own, *(os.path.abspath(cache) for cache in caches if cache is not None)]


def _load_packed(builder: str, files: list[str], split: str, options: dict[str, Any]):
    """Parquet files or tars as one split.

    Raises:
        ValueError: one of them is damaged; the message names it.
    """
    if options["streaming"] and builder == "parquet":  # otherwise damage would be found in the middle of a training
        refuse_damaged(builder, files)
    if split == ALL_SPLITS:  # not a name of files
        split = "train"
    try:
        return datasets.load_dataset(builder, data_files={without_slice(split): files}, split=split, **options)
    except DAMAGE as error:
        refuse_damaged(builder, files)
        raise ValueError(f"the data set of {files[0]!r} cannot be read ({cause_of(error)}).") from error


def _load_folder(
    folder: str, split: str, config_name: str | None, options: dict[str, Any]
) -> datasets.Dataset | datasets.IterableDataset:
    if config_name is not None:
        return datasets.load_dataset(folder, config_name, split=split, **options)
    if os.path.exists(os.path.join(folder, "state.json")):
        dataset = load_saved(folder)
    else:
        if os.path.exists(os.path.join(folder, "dataset_dict.json")):
            splits = load_saved(folder)
        else:
            content = read_folder(folder)
            say_what_is_read(content)
            wanted = split if content.kind == "image" else without_slice(split)
            names = content.splits if split == ALL_SPLITS else [named_split(content.splits, wanted, folder)]
            if content.kind != "image":
                files = [os.path.join(folder, file) for name in names for file in content.splits[name]]
                return _load_packed(BUILDER_OF_SUFFIX[f".{content.kind}"], files, split, options)
            splits = {name: images_of(content, name) for name in names}
        if split == ALL_SPLITS:
            dataset = one_after_the_other(splits, folder)
        else:
            dataset = splits[named_split(splits, split, folder)]
    if options["streaming"]:
        dataset = dataset.to_iterable_dataset(num_shards=min(len(dataset), MAX_STREAM_SHARDS))
    return dataset


def one_after_the_other(splits: Mapping[str, datasets.Dataset], folder: str) -> datasets.Dataset:
    """The rows of all splits; a column that a split lacks is empty there."""
    try:
        return datasets.concatenate_datasets(list(splits.values()))
    except ValueError as error:
        raise ValueError(
            f"the splits of the data set {folder!r}, {', '.join(splits)}, have columns of different types, so they"
            f" cannot be read together ({error}); read one of them."
        ) from error


def without_slice(split: str) -> str:
    """The name of a split without its slice: "train" for "train[:100]"."""
    return re.split(r"\W", split)[0]


def dataset_of_files(paths: Sequence[str]) -> datasets.Dataset:
    """The images of some files, undecoded: paths or addresses."""
    column = pa.array(paths, pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(len(column), pa.binary()), column], ["bytes", "path"])
    features = datasets.Features({"image": datasets.Image(decode=False)})
    return _dataset_of(pa.table({"image": images}), features, paths)


def images_of(content: FolderContent, split: str) -> datasets.Dataset:
    """The images of a split, with their labels or the columns of their metadata."""
    files = content.splits[split]
    dataset = dataset_of_files([os.path.join(content.folder, file) for file in files])
    if content.metadata:
        metadata = datasets.Dataset(read_metadata(content.folder, content.metadata, files))
        return datasets.concatenate_datasets([dataset, metadata], axis=1) if metadata.column_names else dataset
    classes_of_split = content.classes()
    if split in classes_of_split:
        # The class names of all splits together, so that a class has the same number in every split.
        names = sorted({name for classes in classes_of_split.values() for name in classes})
        label_of_class = {name: label for label, name in enumerate(names)}
        labels = [label_of_class[name] for name in classes_of_split[split]]
        table = dataset.data.table.append_column("label", pa.array(labels, pa.int64()))
        features = datasets.Features({**dataset.features, "label": datasets.ClassLabel(names=names)})
        return _dataset_of(table, features, [dataset._fingerprint, *names])
    return dataset


def _dataset_of(table: pa.Table, features: datasets.Features, content: Sequence[str]) -> datasets.Dataset:
    """A dataset with a fingerprint from texts that determine its rows. `datasets` would read all rows for one."""
    digest = hashlib.blake2b("\n".join(content).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    return datasets.Dataset(InMemoryTable(table), info=datasets.DatasetInfo(features=features), fingerprint=digest)
