"""What was read from a source and what was not: splits, files by suffix, the column of the images."""

import json
import os
from typing import Any

import datasets

from ...data.reading.image_dataset import ALL_SPLITS
from .sources import OpenSources


def contents_of(sources: OpenSources, number: int) -> dict[str, Any]:
    """Plain values for the report.

    Returns:
        `image_column`; `splits` that were read and `splits_not_read`, by name, with their rows (with their files, if
        rows are not counted); `unread`, the number of files of each suffix that is not read; `left_out`, the number of
        files beside the splits.
    """
    source, listing = sources.sources[number], sources.listings[number]
    splits = (
        _splits_of(os.path.expanduser(source.path), sources.rows[number].dataset)
        if listing is None
        else listing.content.splits
    )
    is_read = {name: source.split in (ALL_SPLITS, name) or source.split.startswith(f"{name}[") for name in splits}
    return {
        "image_column": sources.image_columns[number],
        "splits": {name: count for name, count in splits.items() if is_read[name]},
        "splits_not_read": {name: count for name, count in splits.items() if not is_read[name]},
        "unread": {} if listing is None else listing.content.unread,
        "left_out": 0 if listing is None else listing.content.left_out,
    }


def _splits_of(path: str, dataset: datasets.Dataset) -> dict[str, int]:
    """The rows of each split of a dataset that `datasets` has opened."""
    record = os.path.join(path, "dataset_dict.json")
    if os.path.exists(record):
        with open(record) as file:
            names = json.load(file)["splits"]
        return {name: len(datasets.Dataset.load_from_disk(os.path.join(path, name))) for name in names}
    if os.path.exists(path):
        return {}
    return {name: split.num_examples for name, split in (dataset.info.splits or {}).items()}
