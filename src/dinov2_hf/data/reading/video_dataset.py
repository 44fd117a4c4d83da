"""Loads data sets of videos: files in class folders, saved data sets, parquet, the Hub."""

import os
from pathlib import Path
from typing import Any

import datasets

from .damaged_files import DAMAGE, cause_of, load_saved
from .image_dataset import roots_of
from .row_paths import confined


def load_video_dataset(
    path_or_name: str, *, split: str = "train", video_column: str | None = None
) -> tuple[datasets.Dataset, str]:
    """Load videos, leaving them undecoded.

    Args:
        path_or_name: a folder of video files in class folders, a folder written by `save_to_disk`, a parquet file or a
            folder of them, or the name of a data set on the Hub.
        split: the split to load; train[:1000] is a part of a split.
        video_column: the column of the videos; by default the first of type `Video`, or else of lists of images.

    Returns:
        The data set, and the name of its column of videos.

    Raises:
        ValueError: it cannot be loaded, or has no such column; the message lists the columns.
    """
    path = os.path.expanduser(path_or_name)
    try:
        if os.path.exists(os.path.join(path, "dataset_dict.json")):
            dataset = load_saved(path)[split]
        elif os.path.exists(os.path.join(path, "state.json")):
            dataset = load_saved(path)
        elif Path(path).suffix == ".parquet":
            name = split.partition("[")[0]
            dataset = datasets.load_dataset("parquet", data_files={name: path}, split=split)
        else:
            dataset = datasets.load_dataset(path, split=split)
    except (*DAMAGE, FileNotFoundError, ConnectionError, KeyError, ValueError) as error:
        raise ValueError(
            f"the data set {path_or_name!r} of split {split!r} cannot be loaded: {cause_of(error)}"
        ) from error
    found = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Video)]
    found += [name for name, feature in dataset.features.items() if _is_list_of_images(feature)]
    if video_column is not None and video_column not in dataset.features:
        raise ValueError(f"video_column is {video_column!r}, but the data set has {', '.join(dataset.features)}.")
    if video_column is None and not found:
        raise ValueError(
            f"video_column is not given, and no column holds videos or lists of images: {', '.join(dataset.features)}."
        )
    video_column = video_column or found[0]
    return confined(without_decoding(dataset, video_column), roots_of(path)), video_column


def without_decoding(dataset: datasets.Dataset, video_column: str) -> datasets.Dataset:
    """The data set with its videos or frames as they are stored, not decoded by `datasets`."""
    feature = dataset.features[video_column]
    if isinstance(feature, datasets.Video):
        return dataset.cast_column(video_column, datasets.Video(decode=False))
    if _is_list_of_images(feature):
        return dataset.cast_column(video_column, datasets.List(datasets.Image(decode=False)))
    return dataset


def _is_list_of_images(feature: Any) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList) and isinstance(feature.feature, datasets.Image)
