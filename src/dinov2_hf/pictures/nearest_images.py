"""Images and their nearest neighbours in a collection, as a picture."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..cosines import centred, cosines_less_one
from .channels_as_rgb import rgb_picture
from .grid import Cell, PictureGrid


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbours of each query, the nearest first.

    Attributes:
        rows: (Q, k) rows of the collection.
        similarities: (Q, k) cosines.
    """

    rows: Tensor
    similarities: Tensor


def nearest_images(
    query_features: Tensor, features: Tensor, k: int = 7, own_rows: Sequence[int] | None = None
) -> Neighbors:
    """The `k` rows of a collection that are most similar to each query, by the cosine of their features.

    Args:
        query_features: (Q, D).
        features: (n, D), features of the collection.
        k: number of neighbours.
        own_rows: if the queries are from the collection, the row of each, which is left out.

    Raises:
        ValueError: the collection is too small.
    """
    check_num_neighbors(k, len(features) - (own_rows is not None))
    features = F.normalize(features.float(), dim=1)
    centre = features.mean(dim=0)
    queries = centred(F.normalize(query_features.float(), dim=1), centre)
    similarities = cosines_less_one(queries, centred(features, centre))
    if own_rows is not None:
        similarities[range(len(own_rows)), list(own_rows)] = -float("inf")
    values, rows = similarities.topk(k, dim=1)
    return Neighbors(rows, values + 1)


def check_num_neighbors(k: int, num_images: int) -> None:
    """`ValueError` if there are fewer other images."""
    if not 1 <= k <= num_images:
        raise ValueError(f"`k` is {k}, but must lie between 1 and the {num_images} other images of the collection.")


def square_picture(image: Image.Image | np.ndarray, side: int = 256) -> Image.Image:
    """The centre of an image as a square picture.

    It is larger than the input of a small network, because people need more pixels. For an array (height, width,
    channels) of `decode_channels`, the first three channels are shown, stretched to the range of their values.
    """
    if isinstance(image, np.ndarray):
        image = rgb_picture(image, image.min(), image.max())
    return ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def draw_nearest_images(
    queries: Sequence[Image.Image],
    neighbors: Sequence[Sequence[Image.Image]],
    similarities: Tensor,
    path: str | os.PathLike,
    *,
    labels: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
) -> Path:
    """Draw a row for each query: the image, then its neighbours with their similarity, to a PNG.

    Args:
        queries: Q pictures, all of one size.
        neighbors: k pictures for each query, of that size.
        similarities: (Q, k).
        path: the PNG.
        labels: for each query its own label and those of its neighbours, 1 + k words, written below them.
        title: a line above the pictures.
    """
    rows = []
    for index, (query, found) in enumerate(zip(queries, neighbors, strict=True)):
        words = labels[index] if labels is not None else [""] * (1 + len(found))
        cells = [Cell(query, words[0] or "query")]
        for picture, similarity, word in zip(found, similarities[index].tolist(), words[1:], strict=True):
            cells.append(Cell(picture, f"{word}\n{similarity:.3f}".strip()))
        rows.append(cells)
    headings = ["image", *(f"neighbour {number}" for number in range(1, len(rows[0])))]
    return PictureGrid(rows, headings=headings, title=title).save(path)
