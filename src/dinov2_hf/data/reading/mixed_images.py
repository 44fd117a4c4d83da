"""Several data sets of one run, each used as often as its weight says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ...named_objects import did_you_mean
from .image_columns import find_image_column
from .image_dataset import load_image_dataset


COLUMN = "image"
KEYS = ("path", "weight", "split", "dataset_config_name", "image_column")


@dataclass(frozen=True)
class MixedImages:
    """
    Args:
        parts: the data sets as they were loaded; for streams, only the column "image".
        weights: how often an image of each is used, as ratios.
        images: the images of all of them, one after the other, with only the column "image".
        is_streamed: whether they are read as streams.
    """

    parts: list[datasets.Dataset] | list[datasets.IterableDataset]
    weights: list[float]
    images: datasets.Dataset | datasets.IterableDataset
    is_streamed: bool = False

    @property
    def num_shards(self) -> list[int]:
        """The numbers of shards of several streams."""
        return [part.num_shards for part in self.parts]

    @property
    def column_names(self) -> list[str]:
        """The common columns."""
        return self.images.column_names

    def __len__(self) -> int:
        return len(self.images)


def read_entries(train_data: str | Sequence[str | Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    """
    The training data of a recipe: a single path unchanged, or the entries of several data sets for
    `load_mixed_images`. A path alone has the weight 1.

    Raises:
        ValueError: an entry has no path, an unknown key, or an invalid weight.
    """
    if isinstance(train_data, str):
        return train_data
    if len(train_data) == 1 and isinstance(train_data[0], str):
        return train_data[0]
    entries: list[dict[str, Any]] = [{"path": one} if isinstance(one, str) else dict(one) for one in train_data]
    for entry in entries:
        if not isinstance(entry.get("path"), str):
            raise ValueError(f"`train_data` has the entry {entry}, without a path; give it one, in quotes.")
        for key in entry.keys() - KEYS:
            near = did_you_mean(str(key), KEYS) or f" It may have {', '.join(KEYS)}."
            raise ValueError(f"`train_data` has the unknown key `{key}` beside {entry['path']}.{near}")
        weight = entry.setdefault("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise ValueError(f"`train_data` gives {entry['path']} the weight {weight}; it must be a number above 0.")
    return entries


def paths_of(train_data: str | Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths of one data set or of several."""
    return [train_data] if isinstance(train_data, str) else [entry["path"] for entry in train_data]


def load_mixed_images(
    entries: Sequence[Mapping[str, Any]],
    *,
    split: str = "train",
    config_name: str | None = None,
    image_column: str | None = None,
    streaming: bool = False,
) -> MixedImages:
    """
    Load the data sets of a mixture.

    Args:
        entries: `path` and `weight` of each; `split`, `dataset_config_name` and `image_column` if they differ from the
            common ones.
        split, config_name, image_column, streaming: see `load_image_dataset`.

    Raises:
        ValueError: as `load_image_dataset` and `find_image_column`.
    """
    parts, columns = [], []
    for entry in entries:
        column = entry.get("image_column", image_column)
        part = load_image_dataset(
            entry["path"],
            split=entry.get("split", split),
            config_name=entry.get("dataset_config_name", config_name),
            image_column=column,
            streaming=streaming,
        )
        column = find_image_column(part, column)
        only = part.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        parts.append(part)
        columns.append(only if column == COLUMN else only.rename_column(column, COLUMN))
    weights = [entry["weight"] for entry in entries]
    images = datasets.concatenate_datasets(columns)
    return MixedImages(columns if streaming else parts, weights, images, is_streamed=streaming)
