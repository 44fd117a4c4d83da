"""Small images with a mask and a depth for every pixel, that can be learned from their colours."""

import datasets
import numpy as np
from PIL import Image


CLASS_COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 210]])
FEATURES = datasets.Features(dict.fromkeys(("image", "annotation", "depth_map"), datasets.Image()))


def row(rng: np.random.Generator, height: int = 40, width: int = 48) -> dict[str, Image.Image]:
    """Three upright bands in three colours, in a random order: class and depth (1, 2 or 4 metres) follow from it."""
    order = rng.permutation(3)
    mask = np.repeat(order, width // 3)[None].repeat(height, 0).astype(np.uint8)
    image = CLASS_COLOURS[mask] + rng.integers(-20, 20, size=(height, mask.shape[1], 3))
    millimetres = np.array([1000, 2000, 4000], dtype=np.uint16)[mask]
    return {
        "image": Image.fromarray(image.clip(0, 255).astype(np.uint8)),
        "annotation": Image.fromarray(mask),
        "depth_map": Image.fromarray(millimetres),
    }


def banded_images(count: int, seed: int = 0, **size: int) -> datasets.Dataset:
    rng = np.random.default_rng(seed)
    return datasets.Dataset.from_list([row(rng, **size) for _ in range(count)], features=FEATURES)


def with_map(dataset: datasets.Dataset, column: str, array: np.ndarray, number: int = 1) -> datasets.Dataset:
    """The dataset with another mask or depth map in one row."""
    rows = [dict(one) for one in dataset]
    rows[number][column] = Image.fromarray(array)
    return datasets.Dataset.from_list(rows, features=FEATURES)
