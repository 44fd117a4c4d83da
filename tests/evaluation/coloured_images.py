"""Labelled images that any network tells apart: noise around a colour."""

import datasets
import numpy as np
from PIL import Image


COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (240, 240, 240),
    "black": (10, 10, 10),
    "yellow": (230, 230, 20),
}


def coloured_image(name: str, generator: np.random.Generator, side: int = 32) -> Image.Image:
    noise = generator.integers(-10, 10, (side, side, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


def coloured_rows(names, per_class: int, seed: int) -> list[dict]:
    generator = np.random.default_rng(seed)
    return [{"image": coloured_image(name, generator), "label": name} for _ in range(per_class) for name in names]


def coloured_dataset(names, per_class: int, seed: int, class_names=None) -> datasets.Dataset:
    """Rows in turns of the names; the numbers of the labels are those of `class_names` (default: `names`)."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(class_names or names))}
    )
    return datasets.Dataset.from_list(coloured_rows(names, per_class, seed), features=features)
