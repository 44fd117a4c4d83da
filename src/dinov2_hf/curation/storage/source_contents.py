"""What was read of a source, and what was not: splits, files by suffix, the column of the images."""

import json
import os
from typing import Any

import datasets

from ...data.reading.folders import read_folder
from ...data.reading.image_dataset import ALL_SPLITS
from .sources import OpenSources, is_img2dataset


def contents_of(sources: OpenSources, number: int) -> dict[str, Any]:
    """Plain values for the report.

    Returns:
        `image_column`; `splits` that were read and `splits_not_read`, by name, with their rows (files, where rows are
        not counted); `unread`, the number of files of each suffix that is not read; `left_out`, the number of files
        beside the splits.
    """
    source, dataset = sources.sources[number], sources.datasets[number]
    splits, unread, left_out = _found(os.path.expanduser(source.path), source.config_name, dataset)
    is_read = {name: source.split in (ALL_SPLITS, name) or source.split.startswith(f"{name}[") for name in splits}
    return {
        "image_column": sources.image_columns[number],
        "splits": {name: count for name, count in splits.items() if is_read[name]},
        "splits_not_read": {name: count for name, count in splits.items() if not is_read[name]},
        "unread": unread,
        "left_out": left_out,
    }


def _found(
    path: str, config_name: str | None, dataset: datasets.Dataset
) -> tuple[dict[str, int], dict[str, int], int]:
    """Splits, files of other suffixes, and the number of files in no split."""
    if os.path.isdir(path) and config_name is None:
        record = os.path.join(path, "dataset_dict.json")
        if os.path.exists(record):
            with open(record) as file:
                names = json.load(file)["splits"]
            return {name: _rows_of_saved(os.path.join(path, name)) for name in names}, {}, 0
        if os.path.exists(os.path.join(path, "state.json")) or is_img2dataset(path):
            return {}, {}, 0
        content = read_folder(path)
        splits = {name: len(files) for name, files in content.splits.items()}
        return splits, dict(content.unread.most_common()), len(content.left_out)
    if os.path.exists(path) or "*" in path:
        return {}, {}, 0
    return {name: split.num_examples for name, split in (dataset.info.splits or {}).items()}, {}, 0


def _rows_of_saved(folder: str) -> int:
    return len(datasets.Dataset.load_from_disk(folder))
