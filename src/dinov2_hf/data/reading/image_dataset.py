"""Images from where people keep them: folders, parquet, saved data sets, WebDataset tars, the Hub."""

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from ..decoding.channels import image_decoder
from ..decoding.size_limits import UndecodableImage
from .damaged_files import DAMAGE, cause_of, load_saved, refuse_damaged
from .folders import SPLIT_OF_FOLDER_NAME, FolderContent, read_folder, say_what_is_read
from .metadata_files import read_metadata
from .row_paths import confined


BUILDER_OF_SUFFIX = {".parquet": "parquet", ".tar": "webdataset"}
IMAGE_COLUMN_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
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

    Nothing is decoded here, so empty or broken files do not disturb the loading; `decode_image` meets them. Rows that
    name files in place of bytes may name those in the folder of the dataset only (`row_paths`).

    Args:
        path_or_name: one of
            a folder of images, parquet files or tars, read by the rule of `folders` in the order of the paths;
            class folders become a `label` column (`ClassLabel`);
            a folder written by `save_to_disk`;
            a parquet file, WebDataset tar, or a glob of either: all rows make up the one split asked for;
            the name of a data set on the Hub.
        split: the split to load; "all": every split, one after the other. A slice, such as train[:1000], is understood
            for parquet files, tars and the Hub.
        config_name: the configuration of a Hub data set or of a local copy of one.
        image_column: the column of the images; by default the one that `find_image_column` finds.
        streaming: read while iterating, with no copy on disk and no random access.
        cache_dir, token, revision: as in `datasets.load_dataset`.

    Returns:
        The data set; its image column is `datasets.Image(decode=False)`, that is, mappings of `bytes` and `path`.

    Raises:
        ValueError: if the path does not exist and is no Hub name, if it holds no images or what is ambiguous, if a
            parquet file or tar is damaged, or if the split or the column is missing; the message lists the splits or
            columns that there are.
    """
    path = os.path.expanduser(path_or_name)
    if os.path.isdir(path):
        path = os.path.abspath(path)  # the files' names would otherwise count from here, and those of rows from there
        dataset = _load_folder(path, split, config_name, streaming, cache_dir)
    elif Path(path).suffix in BUILDER_OF_SUFFIX:
        if config_name is not None:
            raise ValueError(
                f"config_name is {config_name!r}, but parquet files and tars have no configurations; leave it out."
            )
        dataset = _load_files(path, split, streaming, cache_dir, token)
    elif re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path_or_name) and not os.path.exists(path):
        try:
            dataset = datasets.load_dataset(
                path_or_name,
                config_name,
                split=split,
                streaming=streaming,
                cache_dir=cache_dir,
                token=token,
                revision=revision,
            )
        except (FileNotFoundError, ConnectionError) as error:
            raise ValueError(
                f"the data set {path_or_name!r} is no path on this machine and could not be loaded from the Hub "
                f"({error})."
            ) from error
    else:
        problem = "is no folder, parquet file or tar" if os.path.exists(path) else "does not exist"
        raise ValueError(
            f"the data set {path_or_name!r} {problem}; give a folder, a .parquet or .tar file, a glob of such files, "
            "or the name of a data set on the Hub."
        )
    try:
        column = find_image_column(dataset, image_column)
    except DAMAGE as error:  # a stream without types is read for the first time
        raise ValueError(f"the data set {path_or_name!r} cannot be read ({cause_of(error)}).") from error
    dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return confined(dataset, roots_of(path, cache_dir))


def evaluation_split(path_or_name: str) -> str:
    """The split to evaluate on where the user names none: "test", else "validation", else the only split there is.

    A parquet file or tar is one split under any name, and what the Hub has is not asked: both are "test". So is what
    cannot be read: loading it says why.

    Args:
        path_or_name: as in `load_image_dataset`.

    Raises:
        ValueError: a folder has several splits and none of these.
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
        " validation: name the one to evaluate on, --eval_split."
    )


def roots_of(path_or_name: str, cache_dir: str | None = None) -> list[str]:
    """Where the rows of a dataset may name files: its own folder, and the caches of what `datasets` downloads.

    Args:
        path_or_name, cache_dir: as in `load_image_dataset`.
    """
    if os.path.isdir(path_or_name):
        own = os.path.abspath(path_or_name)
    elif "://" in path_or_name:
        own = path_or_name.rpartition("/")[0]
    elif os.path.exists(path_or_name) or Path(path_or_name).suffix in BUILDER_OF_SUFFIX:
        own = os.path.dirname(os.path.abspath(path_or_name))
        while glob.has_magic(own) and not os.path.exists(own):
            own = os.path.dirname(own)
    else:
        own = f"hf://datasets/{path_or_name}"
    caches = (cache_dir, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return [own, *(os.path.abspath(cache) for cache in caches if cache is not None)]


def find_image_column(dataset: datasets.Dataset | datasets.IterableDataset, image_column: str | None = None) -> str:
    """The name of the column that holds the images.

    Args:
        dataset: the data set.
        image_column: the column the user named, which is then only checked.

    Returns:
        `image_column`. Where it is not given, the only column of type `Image`; of several, the only one that is named
        like an image ("image", "img", "jpg", ...). Where no column has that type, the only column of encoded files
        (binary, or structs of `bytes` and `path`) that is named so.

    Raises:
        ValueError: if there is no such column, or several (a picture and its mask): none is taken silently. The
            message lists them.
    """
    features = dataset.features
    if features is None:
        # A stream of untyped rows (such as JSON lines) tells its columns only through its rows.
        features = datasets.Dataset.from_list([next(iter(dataset))]).features
    columns = ", ".join(features)
    if image_column is not None:
        if image_column not in features:
            raise ValueError(f"image_column is {image_column!r}, but the data set has the columns: {columns}.")
        feature = features[image_column]
        if not (_is_image(feature) or feature == datasets.Value("string")):
            raise ValueError(
                f"image_column is {image_column!r}, but that column holds {feature}, not images; the columns are: "
                f"{columns}."
            )
        return image_column
    named = [name for name in features if name.lower() in IMAGE_COLUMN_NAMES and _is_image(features[name])]
    typed = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    found = typed or named
    if not found:
        raise ValueError(f"image_column is not given, and none of the data set's columns holds images: {columns}.")
    if len(found) > 1:
        found = [name for name in found if name in named] or found
    if len(found) > 1:
        raise ValueError(
            f"image_column is not given, and {len(found)} columns of the data set hold images, {', '.join(found)}:"
            " name the one to read."
        )
    return found[0]


def first_images(
    dataset: datasets.Dataset | datasets.IterableDataset, image_column: str, count: int, num_channels: int = 3
) -> list[Image.Image] | list[np.ndarray]:
    """The first `count` images that can be decoded, by `image_decoder(num_channels)`; fewer if there are no more."""
    images, decode = [], image_decoder(num_channels)
    for row in dataset.select_columns([image_column]):  # other columns may hold images that cannot be decoded
        try:
            images.append(decode(row[image_column]))
        except UndecodableImage:
            continue
        if len(images) == count:
            break
    return images


def describe_row(value: Any, index: int | str) -> str:
    """A short name of a row for people, such as "row 123 (cats/7.jpg)".

    Args:
        value: the row's image, as `load_image_dataset` leaves it.
        index: the row's number.
    """
    path = value.get("path") if isinstance(value, Mapping) else None
    return f"row {index} ({path})" if path else f"row {index}"


def _is_image(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return {"bytes", "path"} == set(feature)
    return isinstance(feature, datasets.Image) or feature in (
        datasets.Value("binary"),
        datasets.Value("large_binary"),
    )


def _load_files(
    pattern: str, split: str, streaming: bool, cache_dir: str | None, token: str | bool | None
) -> datasets.Dataset | datasets.IterableDataset:
    if "://" in pattern or os.path.exists(pattern):
        files = [pattern]
    else:
        files = sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise ValueError(f"the data set {pattern!r} matches no file.")
    return _load_packed(
        BUILDER_OF_SUFFIX[Path(pattern).suffix],
        files,
        split,
        streaming=streaming,
        cache_dir=cache_dir,
        token=token,
    )


def _load_packed(builder: str, files: list[str], split: str, **options: Any):
    """Parquet files or tars as one split.

    Raises:
        ValueError: one of them is damaged; the message names it.
    """
    if options["streaming"] and builder == "parquet":  # or it would be found in the middle of a training
        refuse_damaged(builder, files)
    if split == ALL_SPLITS:  # no name that files may have
        split = "train"
    try:
        return datasets.load_dataset(builder, data_files={_split_name(split): files}, split=split, **options)
    except DAMAGE as error:
        refuse_damaged(builder, files)
        raise ValueError(f"the data set of {files[0]!r} cannot be read ({cause_of(error)}).") from error


def _load_folder(
    folder: str, split: str, config_name: str | None, streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    if config_name is not None:
        return datasets.load_dataset(folder, config_name, split=split, streaming=streaming, cache_dir=cache_dir)
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):
        splits = load_saved(folder)
        if split == ALL_SPLITS:
            dataset = _one_after_the_other(splits, folder)
        else:
            dataset = _take_split(splits, split, folder)
    elif os.path.exists(os.path.join(folder, "state.json")):
        dataset = load_saved(folder)
    else:
        content = read_folder(folder)
        say_what_is_read(content)
        if content.kind != "image":
            if split == ALL_SPLITS:
                files = [file for files_of_split in content.splits.values() for file in files_of_split]
            else:
                files = content.splits[content.split_name(_split_name(split))]
            return _load_packed(
                BUILDER_OF_SUFFIX[f".{content.kind}"],
                [os.path.join(folder, file) for file in files],
                split,
                streaming=streaming,
                cache_dir=cache_dir,
            )
        if split == ALL_SPLITS:
            dataset = _one_after_the_other({name: _images_of(content, name) for name in content.splits}, folder)
        else:
            dataset = _images_of(content, split)
    if streaming:
        dataset = dataset.to_iterable_dataset(num_shards=min(len(dataset), MAX_STREAM_SHARDS))
    return dataset


def _one_after_the_other(splits: Mapping[str, datasets.Dataset], folder: str) -> datasets.Dataset:
    """The rows of all splits; a column that a split lacks is empty there."""
    try:
        return datasets.concatenate_datasets(list(splits.values()))
    except ValueError as error:
        raise ValueError(
            f"the splits of the data set {folder!r}, {', '.join(splits)}, have columns of different types, so they"
            f" cannot be read together ({error}); read one of them."
        ) from error


def _split_name(split: str) -> str:
    """The name without a slice: of "train[:100]" it is "train"."""
    return re.split(r"\W", split)[0]


def _take_split(splits: Mapping[str, Any], split: str, folder: str) -> Any:
    for name in (split, SPLIT_OF_FOLDER_NAME.get(split)):
        if name in splits:
            return splits[name]
    raise ValueError(f"split is {split!r}, but the data set {folder!r} has the splits: {', '.join(splits)}.")


def _images_of(content: FolderContent, split: str) -> datasets.Dataset:
    """The images of a split, with their labels or the columns of their metadata."""
    split = content.split_name(split)
    files = content.splits[split]
    dataset = datasets.Dataset.from_dict({"image": [os.path.join(content.folder, file) for file in files]})
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    if content.metadata:
        metadata = datasets.Dataset(read_metadata(content.folder, content.metadata, files))
        return datasets.concatenate_datasets([dataset, metadata], axis=1) if metadata.column_names else dataset
    classes_of_split = content.classes()
    if split in classes_of_split:
        # The class names of all splits together, so that a class has the same number in each.
        names = sorted({name for classes in classes_of_split.values() for name in classes})
        label_of_class = {name: label for label, name in enumerate(names)}
        labels = [label_of_class[name] for name in classes_of_split[split]]
        dataset = dataset.add_column("label", labels, feature=datasets.ClassLabel(names=names))
    return dataset
