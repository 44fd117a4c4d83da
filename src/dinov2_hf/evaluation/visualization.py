"""Colour pictures by the principal components of their patch features (paper section 7).

Shapes: `n` images, `h` x `w` patches of an image, `D` hidden size.
"""

import os
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..features import evaluation_mode, patch_size_of, process_images


def patch_pca(model: nn.Module, pixel_values: Tensor) -> np.ndarray:
    """The first three principal components of the patch features, as colours.

    The components are those of the patches of all images together, so equal colours mean similar features across
    images too. Each component is scaled from its 1st to its 99th percentile. The sign of a component is the one that
    makes its largest loading positive.

    Args:
        model: any model with `config.patch_size` whose `last_hidden_state` is the CLS token, then
            `config.num_register_tokens` registers (none if the config has no such field), then the patches row by row.
        pixel_values: (n, channels, height, width).

    Returns:
        (n, h, w, 3) float64 in [0, 1].

    Raises:
        ValueError: the model gives another number of patch tokens than the patch grid of the images has.
    """
    patch_height, patch_width = patch_size_of(model)
    height, width = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
    with evaluation_mode(model), torch.no_grad():
        hidden_state = model(pixel_values.to(next(model.parameters()).device)).last_hidden_state
    patches = hidden_state[:, 1 + getattr(model.config, "num_register_tokens", 0) :]
    if patches.shape[1] != height * width:
        raise ValueError(
            f"model gives {patches.shape[1]} patch tokens, but pixel_values of shape {tuple(pixel_values.shape)} hold "
            f"{height} x {width} patches of config.patch_size={model.config.patch_size}."
        )

    # On the CPU and in fp64, so that the same features give the same colours everywhere.
    patches = patches.flatten(0, 1).double().cpu()
    patches = patches - patches.mean(dim=0)
    _, directions = torch.linalg.eigh(patches.T @ patches)
    directions = directions[:, -3:].flip(1)
    largest_loadings = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    components = (patches @ (directions * largest_loadings.sign())).numpy()

    low, high = np.percentile(components, [1, 99], axis=0)
    colours = (components - low) / np.maximum(high - low, 1e-12)
    return colours.clip(0, 1).reshape(len(pixel_values), height, width, 3)


def draw_patch_pca(images: Sequence[Image.Image], pca: np.ndarray, path: str | Path, title: str | None = None) -> None:
    """Draw pictures, with their PCA colours below them, to a PNG; more than 8 are broken into several bands.

    Args:
        images: n pictures, as the model saw them (cropped).
        pca: (n, h, w, 3) in [0, 1], from `patch_pca`.
        path: the PNG; missing folders are made, and the file appears complete or not at all.
        title: a line above the pictures.

    Raises:
        ValueError: there is no picture, or there are not as many colour maps as pictures.
    """
    if len(images) == 0 or len(images) != len(pca):
        raise ValueError(f"images has {len(images)} pictures and pca {len(pca)} maps, but as many of both are needed.")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bands = ceil(len(images) / 8)
    columns = ceil(len(images) / bands)
    # All lengths are in inches, from the top left corner.
    gap = 0.06
    cell_width = 1.8
    cell_height = cell_width * pca.shape[1] / pca.shape[2]
    column_width = cell_width + gap
    band_height = 2 * cell_height + 4 * gap
    top = 0.36 if title else 0.0
    figure_width = columns * column_width
    figure_height = top + bands * band_height

    figure = Figure(figsize=(figure_width, figure_height), facecolor="white")
    FigureCanvasAgg(figure)

    def draw(picture, left, top, interpolation):
        bottom = figure_height - top - cell_height
        box = left / figure_width, bottom / figure_height, cell_width / figure_width, cell_height / figure_height
        axes = figure.add_axes(box)
        axes.imshow(picture, interpolation=interpolation)
        axes.set_axis_off()

    if title:
        figure.text(0, 1, title, fontsize=13, va="top", ha="left")
    for i, (image, colours) in enumerate(zip(images, pca, strict=True)):
        band, column = divmod(i, columns)
        left, band_top = column * column_width, top + band * band_height
        draw(np.asarray(image.convert("RGB")), left, band_top, "antialiased")
        draw(colours, left, band_top + cell_height + gap, "nearest")

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.png")
    # The tight box also makes room for a title longer than the row of pictures.
    figure.savefig(partial_path, dpi=150, bbox_inches="tight", pad_inches=0.12)
    os.replace(partial_path, path)


def save_patch_pca(
    model: nn.Module,
    images: Sequence[Image.Image] | Sequence[np.ndarray],
    image_processor: Any,
    path: str | Path,
    *,
    image_size: int | None = None,
    device: torch.device | str | None = None,
    title: str | None = None,
) -> Path:
    """Draw the patch PCA of pictures to a PNG: process, run the model, colour, draw.

    Args:
        model: see `patch_pca`.
        images: PIL images, or arrays (height, width, channels) of `decode_channels`, of which the first three
            channels are shown, each stretched to the range of its values.
        image_processor: any transformers image processor.
        path: the PNG.
        image_size: resize the short side to this many pixels and crop a square of it, a multiple of the patch size;
            a larger one gives a finer patch grid. None: as the image processor is configured.
        device: where to run; the model is moved there and stays. None: where the model is.
        title: a line above the pictures.

    Returns:
        The path of the PNG.

    Raises:
        ValueError: there is no picture, or `image_size` is not a multiple of the patch size.
    """
    if len(images) == 0:
        raise ValueError("images has 0 pictures, but at least 1 is needed.")
    overrides = {}
    if image_size is not None:
        patch_size = patch_size_of(model)
        if image_size < 1 or any(image_size % side for side in patch_size):
            raise ValueError(f"image_size={image_size} must be a multiple of the patch size {patch_size}.")
        overrides = {
            "do_resize": True,
            "size": {"shortest_edge": image_size},
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
        }
    if device is not None:
        model.to(device)

    images = [image.convert("RGB") if isinstance(image, Image.Image) else image for image in images]
    pixel_values = process_images(image_processor, images, **overrides)
    # The same crop without the normalisation is what the model saw, as a picture.
    pictures = process_images(image_processor, images, **{**overrides, "do_rescale": True, "do_normalize": False})
    if isinstance(images[0], np.ndarray):
        pictures = pictures[:, [0, 1, 2] if pictures.shape[1] > 2 else [0, 0, 0]]
        low, high = (limit(pictures, dim=(0, 2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
        pictures = (pictures - low) / (high - low).clamp_min(1e-12)
    pictures = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    draw_patch_pca([Image.fromarray(picture) for picture in pictures], patch_pca(model, pixel_values), path, title)
    return Path(path)
