"""The similarity of one patch to all others, in its own picture and in another one (section 7.5)."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from .attention_maps import colour_map


def similarity_map(patch: Tensor, features: Tensor) -> np.ndarray:
    """The cosine of a feature with the feature of every patch.

    Args:
        patch: (D,).
        features: (h, w, D).

    Returns:
        (h, w) float64 in [-1, 1].
    """
    return F.cosine_similarity(features.double(), patch.double(), dim=-1).numpy()


def best_patches(similarity: np.ndarray, count: int, min_distance: float = 1.5) -> list[tuple[int, int]]:
    """Rows and columns of the most similar patches, the best first.

    Args:
        similarity: (h, w).
        count: largest number of patches.
        min_distance: smallest distance between two of them, in patches, so that they are not all next to the best one.
    """
    found: list[tuple[int, int]] = []
    for place in np.argsort(-similarity, axis=None, kind="stable"):
        row, column = map(int, np.unravel_index(place, similarity.shape))
        if all(np.hypot(row - other[0], column - other[1]) >= min_distance for other in found):
            found.append((row, column))
        if len(found) == count:
            break
    return found


def patch_at(x: float, y: float, grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the patch at a point of a picture.

    Args:
        x, y: shares of the width and the height, in [0, 1].
        grid: patches (h, w).
    """
    height, width = grid
    return min(max(int(y * height), 0), height - 1), min(max(int(x * width), 0), width - 1)


def draw_similarity(
    picture: Image.Image,
    similarity: np.ndarray,
    limits: tuple[float, float],
    marked: Iterable[tuple[int, int]] = (),
    *,
    names: Sequence[str] = (),
    strength: float = 0.65,
) -> Image.Image:
    """A picture below the colours of a similarity map, from black for the least to yellow for the most similar.

    Args:
        picture: the input picture of the model.
        similarity: (h, w).
        limits: the values of black and yellow, the same for pictures that are compared.
        marked: rows and columns of patches that get a frame.
        names: a word next to each of them.
        strength: strength of the colours, in [0, 1].
    """
    height, width = similarity.shape
    colours = Image.fromarray(np.rint(colour_map(similarity, limits) * 255).astype(np.uint8))
    drawn = Image.blend(picture.convert("RGB"), colours.resize(picture.size, Image.Resampling.NEAREST), strength)
    pen = ImageDraw.Draw(drawn)
    step_x, step_y = picture.width / width, picture.height / height
    for number, (row, column) in enumerate(marked):
        left, top = column * step_x, row * step_y
        for grown, colour in ((2, "black"), (1, "white"), (0, "white")):
            pen.rectangle(
                (left - grown, top - grown, left + step_x + grown - 1, top + step_y + grown - 1), outline=colour
            )
        if number < len(names):
            pen.text((left + step_x + 4, top), names[number], fill="white", stroke_width=2, stroke_fill="black")
    return drawn
