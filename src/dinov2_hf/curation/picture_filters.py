"""Filters on pixels or columns, without a model: sharpness, brightness, information, lists."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from .filters import FILTERS


MEASURED_SIDE = 256  # pixels of the longer side, so that scores of large and small pictures can be compared


@FILTERS.register("sharpness")
def sharpness(images: list[Image.Image], columns: Mapping[str, Any]) -> list[float]:
    """The variance of the Laplacian of grey levels of 0 to 255 (Pech-Pacheco et al. 2000); low if it is blurred."""
    return [float(_laplacian(_grey(image)).var()) for image in images]


@FILTERS.register("brightness")
def brightness(images: list[Image.Image], columns: Mapping[str, Any]) -> list[float]:
    """The mean grey level, from 0 (black) to 1 (white)."""
    return [float(_grey(image).mean() / 255) for image in images]


@FILTERS.register("information")
def information(images: list[Image.Image], columns: Mapping[str, Any]) -> list[float]:
    """The entropy of the differences of neighbouring grey levels, in bits for each pixel; 0 for a single colour."""
    return [_entropy(np.diff(_grey(image).astype(np.int64), axis=1)) for image in images]


@FILTERS.register("pixels", reads_pixels=False)
def pixels(images: list[Image.Image], columns: Mapping[str, Any]) -> np.ndarray:
    """Width times height."""
    return np.multiply(columns["width"], columns["height"])


@FILTERS.register("listed", reads_pixels=False)
class Listed:
    """1 if the value of a column is in a list, else 0: `min: 1` keeps listed images, `max: 0` the others.

    Args:
        column: column of the source, such as "license"; an image without a value is not listed.
        values: the list, or the path of a text file with one value on each line; case does not matter.

    Raises:
        ValueError: the list is empty, or the file cannot be read.
    """

    def __init__(self, column: str, values: Sequence[str] | str):
        self.column, self.values = column, _read_list(values)

    def __call__(self, images: list[Image.Image], columns: Mapping[str, Any]) -> list[int]:
        return [self.is_listed(value) for value in columns[self.column]]

    def is_listed(self, value: Any) -> int:
        return int(value is not None and str(value).strip().lower() in self.values)


@FILTERS.register("domain_listed", reads_pixels=False)
class DomainListed(Listed):
    """1 if the host of an address is in a list, or is a subdomain (`example.org` lists `www.example.org`).

    Args:
        column: column of the source with addresses.
        values: as in `listed`.
    """

    def __init__(self, values: Sequence[str] | str, column: str = "url"):
        super().__init__(column, values)

    def is_listed(self, value: Any) -> int:
        text = str(value or "")
        parts = (urlsplit(text if "//" in text else f"//{text}").hostname or "").rstrip(".").split(".")
        return int(any(".".join(parts[first:]) in self.values for first in range(len(parts))))


def _read_list(values: Sequence[str] | str) -> frozenset[str]:
    if isinstance(values, str):
        try:
            values = Path(values).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"values is {values!r}, which is not a readable text file: {error}") from None
    found = frozenset(str(value).strip().lower() for value in values if str(value).strip())
    if not found:
        raise ValueError("values is empty, but must be a list, or a text file with one value on each line.")
    return found


def _grey(image: Image.Image) -> np.ndarray:
    """(h, w) grey levels of 0 to 255, the longer side at most `MEASURED_SIDE`."""
    small = image.convert("L")
    small.thumbnail((MEASURED_SIDE, MEASURED_SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """The Laplacian of the inner pixels; 0 if the picture is so narrow that it has none."""
    level = grey.astype(np.float64)
    if min(level.shape) < 3:
        return np.zeros(1)
    inner = level[1:-1, 1:-1]
    return level[:-2, 1:-1] + level[2:, 1:-1] + level[1:-1, :-2] + level[1:-1, 2:] - 4 * inner


def _entropy(values: np.ndarray) -> float:
    if not values.size:
        return 0.0
    share = np.unique(values, return_counts=True)[1] / values.size
    return float(-(share * np.log2(share)).sum()) + 0.0
