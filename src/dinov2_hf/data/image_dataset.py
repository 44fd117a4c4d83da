"""Images from where people keep them: folders, parquet, saved data sets, WebDataset tars, the Hub."""

import glob
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .channel_decoding import image_decoder
from .image_decoding import UndecodableImage


IMAGE_SUFFIXES = frozenset(
    (
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".npy",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
BUILDER_OF_SUFFIX = {".parquet": "parquet", ".tar": "webdataset"}
SPLIT_OF_FOLDER_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
IMAGE_COLUMN_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")
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

    Nothing is decoded here, so empty or broken files do not disturb the loading; `decode_image` meets them.

    Args:
        path_or_name: one of
            a folder of images, at any depth: read in the order of the paths. Top folders that are all called train,
            val, test or the like are splits. Where each image of a split lies in one of several class folders, a
            `label` column (`ClassLabel`, names in alphabetical order over all splits) says which;
            a folder written by `save_to_disk`;
            a parquet file, WebDataset tar, or a glob of either: all rows make up the one split asked for;
            a folder of parquet files or of tars, whose names or folders may tell the splits;
            the name of a data set on the Hub.
        split: the split to load. A slice, such as train[:1000], is understood for parquet files, tars and the Hub.
        config_name: the configuration of a Hub data set or of a local copy of one.
        image_column: the column of the images; by default the one that `find_image_column` finds.
        streaming: read while iterating, with no copy on disk and no random access.
        cache_dir, token, revision: as in `datasets.load_dataset`.

    Returns:
        The data set; its image column is `datasets.Image(decode=False)`, that is, mappings of `bytes` and `path`.

    Raises:
        ValueError: if the path does not exist and is no Hub name, if it holds no images, or if the split or the column
            is missing; the message lists the splits or columns that there are.
    """
    path = os.path.expanduser(path_or_name)
    if os.path.isdir(path):
        dataset = _load_folder(path, split, config_name, streaming, cache_dir)
    elif Path(path).suffix in BUILDER_OF_SUFFIX:
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
    return dataset.cast_column(find_image_column(dataset, image_column), datasets.Image(decode=False))


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
    for row in dataset:
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
    return datasets.load_dataset(
        BUILDER_OF_SUFFIX[Path(pattern).suffix],
        data_files={_split_name(split): files},
        split=split,
        streaming=streaming,
        cache_dir=cache_dir,
        token=token,
    )


def _load_folder(
    folder: str, split: str, config_name: str | None, streaming: bool, cache_dir: str | None
) -> datasets.Dataset | datasets.IterableDataset:
    if config_name is not None:
        return datasets.load_dataset(folder, config_name, split=split, streaming=streaming, cache_dir=cache_dir)
    if os.path.exists(os.path.join(folder, "dataset_dict.json")):
        dataset = _take_split(datasets.DatasetDict.load_from_disk(folder), split, folder)
    elif os.path.exists(os.path.join(folder, "state.json")):
        dataset = datasets.Dataset.load_from_disk(folder)
    else:
        files = _files_below(folder)
        parquets = [file for file in files if file.endswith(".parquet")]
        tars = [file for file in files if file.endswith(".tar")]
        images = [file for file in files if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]
        if parquets or len(tars) > len(images):
            # A lone tar next to many images is where they came from; a few images next to tars illustrate them.
            packed = _take_split(_split_packed_files(parquets or tars), _split_name(split), folder)
            return datasets.load_dataset(
                "parquet" if parquets else "webdataset",
                data_files={_split_name(split): [os.path.join(folder, file) for file in packed]},
                split=split,
                streaming=streaming,
                cache_dir=cache_dir,
            )
        if not images:
            raise ValueError(
                f"the data set {folder!r} is a folder with no images, parquet files or tars but hidden ones."
            )
        dataset = _image_folder(folder, images, split)
    if streaming:
        dataset = dataset.to_iterable_dataset(num_shards=min(len(dataset), MAX_STREAM_SHARDS))
    return dataset


def _files_below(folder: str) -> list[str]:
    """All files below a folder but hidden ones, as paths relative to it, in alphabetical order."""
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        prefix = os.path.relpath(parent, folder)
        prefix = "" if prefix == "." else prefix + os.sep
        files += [prefix + name for name in names if not name.startswith(".")]
    return sorted(files)


def _split_name(split: str) -> str:
    """The name without a slice: of "train[:100]" it is "train"."""
    return re.split(r"\W", split)[0]


def _take_split(splits: Mapping[str, Any], split: str, folder: str) -> Any:
    for name in (split, SPLIT_OF_FOLDER_NAME.get(split)):
        if name in splits:
            return splits[name]
    raise ValueError(f"split is {split!r}, but the data set {folder!r} has the splits: {', '.join(splits)}.")


def _split_packed_files(files: list[str]) -> dict[str, list[str]]:
    """Group files by the first split name in their path; where no path has one, all files are for training."""
    splits = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.lower())
        name = next((SPLIT_OF_FOLDER_NAME[word] for word in words if word in SPLIT_OF_FOLDER_NAME), None)
        splits.setdefault(name, []).append(file)
    unnamed = splits.pop(None, [])
    return splits or {"train": unnamed}


def _image_folder(folder: str, images: list[str], split: str) -> datasets.Dataset:
    parts = [image.split(os.sep) for image in images]
    if all(len(part) > 1 and part[0].lower() in SPLIT_OF_FOLDER_NAME for part in parts):
        split_of_image = [SPLIT_OF_FOLDER_NAME[part[0].lower()] for part in parts]
        depth = 1
    else:
        split_of_image = ["train"] * len(parts)
        depth = 0
    # The class names of all splits together, so that a class has the same number in each.
    classes = sorted({part[depth] for part in parts})
    is_labelled = len(classes) > 1 and all(len(part) == depth + 2 for part in parts)
    rows_of_split = {}
    for row, name in enumerate(split_of_image):
        rows_of_split.setdefault(name, []).append(row)
    rows = _take_split(rows_of_split, split, folder)
    dataset = datasets.Dataset.from_dict({"image": [os.path.join(folder, images[row]) for row in rows]})
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    if is_labelled:
        label_of_class = {name: label for label, name in enumerate(classes)}
        labels = [label_of_class[parts[row][depth]] for row in rows]
        dataset = dataset.add_column("label", labels, feature=datasets.ClassLabel(names=classes))
    return dataset
