"""Similar parts of two images: patches that are each other's nearest neighbours (section 7.5)."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .figures import new_figure, save_figure
from .patch_pca import foreground_mask, patch_features


@dataclass(frozen=True)
class PatchMatches:
    """Pairs of patches, the most similar first.

    Attributes:
        first, second: (m, 2) row and column of each patch in the grid of its image.
        similarity: (m,) cosine of their features.
        grid: patches (h, w) of each image.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    grid: tuple[int, int]


def match_patches(
    model: nn.Module,
    pixel_values: Tensor,
    *,
    foreground: bool = True,
    max_matches: int = 24,
    min_distance: float = 1.5,
) -> PatchMatches:
    """Pairs of patches of two images where each is the most similar one to the other, by the cosine of features.

    Args:
        model: as in `image_features`.
        pixel_values: (2, channels, height, width).
        foreground: only match patches in the `foreground_mask` of the two images.
        max_matches: number of matches to keep.
        min_distance: between kept patches of one image, in patches, so that matches spread over the object instead of
            crowding where it is most alike.

    Raises:
        ValueError: there are not two images, or an option is out of its range.
    """
    if len(pixel_values) != 2:
        raise ValueError(f"pixel_values holds {len(pixel_values)} images, but 2 are needed to match.")
    if max_matches < 1 or min_distance < 0:
        raise ValueError(
            f"`max_matches` is {max_matches}, but must be at least 1, and `min_distance` {min_distance} at least 0."
        )
    features = patch_features(model, pixel_values)
    mask = (
        torch.from_numpy(foreground_mask(features)) if foreground else torch.ones(features.shape[:3], dtype=torch.bool)
    )
    normed = F.normalize(features, dim=-1)
    similarity = normed[0].flatten(0, 1) @ normed[1].flatten(0, 1).T
    similarity[~mask[0].flatten()] = -torch.inf
    similarity[:, ~mask[1].flatten()] = -torch.inf
    values, partners = similarity.max(dim=1)
    mutual = similarity.argmax(dim=0)[partners] == torch.arange(len(partners))
    found = (mutual & values.isfinite()).nonzero()[:, 0]
    found = found[values[found].argsort(descending=True, stable=True)]
    height, width = features.shape[1:3]
    first = np.stack(np.divmod(found.numpy(), width), axis=1)
    second = np.stack(np.divmod(partners[found].numpy(), width), axis=1)
    kept: list[int] = []
    for index in range(len(found)):
        far = all(
            min(np.hypot(*(first[index] - first[other])), np.hypot(*(second[index] - second[other]))) >= min_distance
            for other in kept
        )
        if far:
            kept.append(index)
        if len(kept) == max_matches:
            break
    return PatchMatches(first[kept], second[kept], values[found[kept]].numpy(), (height, width))


def draw_patch_matches(
    images: tuple[Image.Image, Image.Image], matches: PatchMatches, path: str | os.PathLike, title: str | None = None
) -> Path:
    """Draw two pictures side by side, with a line for each match, to a PNG.

    The colour of a match depends on its place in the first image, so that parts of an object can be distinguished.

    Args:
        images: the input pictures of the model (cropped), of equal size.
        matches: from `match_patches`.
        path: the PNG.
        title: a line above the pictures.
    """
    from matplotlib import colormaps

    left, right = (np.asarray(image.convert("RGB")) for image in images)
    height, width = left.shape[:2]
    gap = round(width * 0.06)
    canvas = np.full((height, 2 * width + gap, 3), 255, dtype=np.uint8)
    canvas[:, :width], canvas[:, width + gap :] = left, right
    figure = new_figure(9, 9 * height / canvas.shape[1])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="antialiased")
    axes.set_axis_off()
    scale = np.array([height / matches.grid[0], width / matches.grid[1]])
    starts, ends = ((patches + 0.5) * scale for patches in (matches.first, matches.second))
    # Around a colour wheel by the angle from the centre of the matches.
    around = starts - starts.mean(axis=0) if len(starts) else starts
    hues = (np.arctan2(around[:, 0], around[:, 1]) / (2 * np.pi)) % 1
    for start, end, hue in zip(starts, ends, hues, strict=True):
        colour = colormaps["hsv"](hue)
        x, y = (start[1], end[1] + width + gap), (start[0], end[0])
        axes.plot(x, y, color="black", linewidth=2.0, alpha=0.35, solid_capstyle="round")
        axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.95)
        axes.scatter(x, y, s=26, color=[colour], edgecolors="white", linewidths=0.9, zorder=3)
    axes.set_xlim(-0.5, canvas.shape[1] - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    if title:
        axes.set_title(title, fontsize=13, loc="left")
    return save_figure(figure, path, pad_inches=0.12)
