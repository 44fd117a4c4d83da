"""Colours pictures by the principal components of their patch features (paper section 7).

Shapes: `n` images, `h` x `w` patches of an image, `D` hidden size.
"""

import os
from collections.abc import Sequence
from itertools import permutations
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..features import evaluation_mode, image_features
from .grid import Cell, PictureGrid
from .seen_images import prepare_pictures


def patch_pca(
    model: nn.Module, pixel_values: Tensor, *, foreground: bool = False, like: np.ndarray | None = None
) -> np.ndarray:
    """The first three principal components of the patch features, as colours.

    The components are computed over the patches of all images together, so equal colours also mean similar features
    across images. Each component is scaled from its 1st to its 99th percentile. Its sign makes its largest loading
    positive.

    Args:
        model: any model with `config.patch_size` whose `last_hidden_state` is the CLS token, then
            `config.num_register_tokens` registers (none if the config has no such field), then the patches row by row.
        pixel_values: (n, channels, height, width).
        foreground: only colour the patches of `foreground_mask`, by separate components; the others are black.
        like: the result of this function for the same images and an earlier state of the network. Components then get
            the order and the signs for which they are most similar to these colours, so that pictures can be compared.

    Returns:
        (n, h, w, 3) float64 in [0, 1].

    Raises:
        ValueError: the number of patch tokens of the model differs from the patch grid of the images.
    """
    return colours_of_features(patch_features(model, pixel_values), foreground=foreground, like=like)


def colours_of_features(features: Tensor, *, foreground: bool = False, like: np.ndarray | None = None) -> np.ndarray:
    """The result of `patch_pca` for patch features (n, h, w, D), float64 on the CPU."""
    mask = foreground_mask(features) if foreground else np.ones(features.shape[:3], dtype=bool)
    components = principal_components(features[torch.from_numpy(mask)], 3)
    if like is not None:
        components = matched_to(like[mask], components)
    low, high = np.percentile(components, [1, 99], axis=0)
    colours = np.zeros((*features.shape[:3], 3))
    colours[mask] = ((components - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return colours


def foreground_mask(features: Tensor) -> np.ndarray:
    """The patches of the objects: the first principal component separates them from the background (paper).

    The background is the side of the component's mean that has more of the patches at the edges of the images.

    Args:
        features: (n, h, w, D), of all images together.

    Returns:
        (n, h, w) booleans; all true if the features do not differ.
    """
    first = principal_components(features.flatten(0, 2), 1).reshape(features.shape[:3])
    edges = np.ones(first.shape[1:], dtype=bool)
    edges[1:-1, 1:-1] = False
    mask = first > 0
    if mask[:, edges].mean() > 0.5:
        mask = first < 0
    return mask if mask.any() else np.ones_like(mask)


def patch_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The patch features (n, h, w, D) of images, float64 on the CPU, computed in eval mode on the model's device."""
    with evaluation_mode(model), torch.no_grad():
        # One image at a time, because there are few pictures and they may be large.
        device = next(model.parameters()).device
        grids = [image_features(model, image[None].to(device), "patch_grid") for image in pixel_values]
    # In fp64, so that the same features give the same colours everywhere.
    return torch.cat(grids).double().cpu()


def principal_components(features: Tensor, count: int) -> np.ndarray:
    """The first `count` components (rows, count) of features (rows, D), centred; largest loading positive."""
    centred = features - features.mean(dim=0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    directions = directions[:, -count:].flip(1)
    largest_loadings = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return (centred @ (directions * largest_loadings.sign())).numpy()


def matched_to(earlier: np.ndarray, components: np.ndarray) -> np.ndarray:
    """Components (rows, 3) in the order and with the signs that correlate most with earlier ones of the same rows.

    A basis from an earlier state does not work, because the directions of features rotate while a network learns. The
    relations between patches can be compared, and the components describe these.
    """
    deviations = [values - values.mean(axis=0) for values in (earlier, components)]
    norms = [np.maximum(np.linalg.norm(values, axis=0), 1e-12) for values in deviations]
    correlations = (deviations[0].T @ deviations[1]) / np.outer(*norms)
    count = components.shape[1]
    order = max(permutations(range(count)), key=lambda order: np.abs(correlations[range(count), order]).sum())
    return components[:, order] * np.where(correlations[range(count), order] < 0, -1.0, 1.0)


def draw_patch_pca(
    images: Sequence[Image.Image], pca: np.ndarray, path: str | os.PathLike, title: str | None = None
) -> None:
    """Draw pictures, with their PCA colours below them, to a PNG; more than 8 are split into several rows.

    Args:
        images: n input pictures of the model (cropped).
        pca: (n, h, w, 3) in [0, 1], from `patch_pca`.
        path: the PNG; missing folders are made, and the file appears complete or not at all.
        title: a line above the pictures.

    Raises:
        ValueError: there is no picture, or there are not as many colour maps as pictures.
    """
    if len(images) == 0 or len(images) != len(pca):
        raise ValueError(f"images has {len(images)} pictures and pca {len(pca)} maps, but as many of both are needed.")
    bands = ceil(len(images) / 8)
    columns = ceil(len(images) / bands)
    rows = []
    for start in range(0, len(images), columns):
        rows.append([Cell(image) for image in images[start : start + columns]])
        rows.append([Cell(colours) for colours in pca[start : start + columns]])
    labels = ["image", "patch PCA"] * bands
    PictureGrid(rows, row_gaps=dict.fromkeys(range(2, len(rows), 2), 2), labels=labels, title=title).save(path)


def save_patch_pca(
    model: nn.Module,
    images: Sequence[Image.Image] | Sequence[np.ndarray],
    image_processor: Any,
    path: str | os.PathLike,
    *,
    image_size: int | None = None,
    foreground: bool = False,
    device: torch.device | str | None = None,
    title: str | None = None,
) -> Path:
    """Draw the patch PCA of pictures to a PNG: process, run the model, colour, draw.

    Args:
        model, foreground: see `patch_pca`.
        images, image_processor, image_size: see `prepare_pictures`.
        path: the PNG.
        device: where to run; the model is moved there and stays. None: where the model is.
        title: a line above the pictures.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: there is no picture, or `image_size` is not a multiple of the patch size.
    """
    if device is not None:
        model.to(device)
    pixel_values, pictures = prepare_pictures(model, images, image_processor, image_size)
    draw_patch_pca(pictures, patch_pca(model, pixel_values, foreground=foreground), path, title)
    return Path(path)
