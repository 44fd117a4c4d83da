"""Finds the column of images of a data set, and reads images from it."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..decoding.channels import image_decoder
from ..decoding.undecodable import UndecodableImage


IMAGE_COLUMN_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp")


def find_image_column(dataset: datasets.Dataset | datasets.IterableDataset, image_column: str | None = None) -> str:
    """The name of the column of images.

    Args:
        dataset: the data set.
        image_column: the column the user named, which is then only checked.

    Returns:
        `image_column`. If it is not given, the only column of type `Image`; if there are several, the only one that is
        named like an image ("image", "img", "jpg", ...). If no column has that type, the only column of encoded files
        (binary, or structs of `bytes` and `path`) with such a name.

    Raises:
        ValueError: there is no such column, or several (such as a picture and its mask), and none is chosen silently.
            The message lists them.
    """
    features = dataset.features
    if features is None:
        # The columns of a stream of untyped rows (such as JSON lines) are only known from its rows.
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
) -> list[Image.Image | np.ndarray]:
    """The first `count` images that can be decoded, by `image_decoder(num_channels)`; fewer if there are no more."""
    images, decode = [], image_decoder(num_channels)
    for row in dataset.select_columns([image_column]):  # other columns may have images that cannot be decoded
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
