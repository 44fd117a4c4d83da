"""What the CLS token of a block attends to, head by head."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..feature_kinds import patch_size_of
from ..features import evaluation_mode
from .grid import Cell, PictureGrid


def attention_maps(model: nn.Module, pixel_values: Tensor, *, layer: int = -1) -> np.ndarray:
    """The attention of the CLS token to every patch, for each head of one block.

    The attention of all blocks for one image is in memory at once: a ViT-L takes 2.8 GB at 518 x 518 pixels in
    float32.

    Args:
        model: any vision transformer of transformers that can output attentions; the CLS token first, then
            `config.num_register_tokens` registers, then the patches row by row.
        pixel_values: (n, channels, height, width).
        layer: number of the block, from 0, or from the end below 0.

    Returns:
        (n, heads, h, w) float64; the values of a map sum to 1 minus the attention of CLS to itself and to registers.

    Raises:
        ValueError: there is no such block, or the model does not output attentions over CLS, registers and patches.
    """
    patch_height, patch_width = patch_size_of(model)
    height, width = pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width
    first_patch = 1 + (getattr(model.config, "num_register_tokens", 0) or 0)
    maps = []
    with evaluation_mode(model), torch.no_grad(), eager_attention(model):
        for image in pixel_values:
            output = model(image[None].to(next(model.parameters()).device), output_attentions=True)
            attentions = getattr(output, "attentions", None)
            if not attentions or attentions[0] is None:
                raise ValueError(f"model ({type(model).__name__}) outputs no attentions.")
            if not -len(attentions) <= layer < len(attentions):
                raise ValueError(f"`layer` is {layer}, but the model has the blocks 0 to {len(attentions) - 1}.")
            of_cls = attentions[layer][0, :, 0]
            if of_cls.shape[1] != first_patch + height * width:
                raise ValueError(
                    f"model attends to {of_cls.shape[1]} tokens, but {first_patch} (CLS, registers) and {height} x "
                    f"{width} patches are expected."
                )
            maps.append(of_cls[:, first_patch:].unflatten(1, (height, width)).double().cpu().numpy())
    return np.stack(maps)


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Use eager attention, which computes the weights; faster ones do not. Afterwards the old one is restored."""
    former = getattr(getattr(model, "config", None), "_attn_implementation", None)
    implement = getattr(model, "set_attn_implementation", None)
    if former is None or former == "eager" or implement is None:
        yield
        return
    implement("eager")
    try:
        yield
    finally:
        implement(former)


def draw_attention_maps(
    images: Sequence[Image.Image],
    maps: np.ndarray,
    path: str | os.PathLike,
    title: str | None = None,
    max_heads: int | None = None,
) -> Path:
    """Draw each picture, the mean of its heads, and every head beside it, to a PNG.

    Brightness compares the patches of one map, not maps: each reaches from its smallest value to its 99th percentile,
    because single patches of large models attract most of the attention.

    Args:
        images: n input pictures of the model (cropped).
        maps: (n, heads, h, w), from `attention_maps`.
        path: the PNG.
        title: a line above the pictures.
        max_heads: draw this many first heads next to the mean, which is over all heads.

    Raises:
        ValueError: there is no picture, or there are not as many maps as pictures.
    """
    if len(images) == 0 or len(images) != len(maps):
        raise ValueError(f"images has {len(images)} pictures and maps {len(maps)}, but as many of both are needed.")
    rows = []
    for image, heads in zip(images, maps, strict=True):
        rows.append([Cell(image), *(Cell(colour_map(one)) for one in (heads.mean(axis=0), *heads[:max_heads]))])
    headings = ["", "mean of heads", *(f"head {number}" for number in range(maps[:, :max_heads].shape[1]))]
    return PictureGrid(rows, headings=headings, title=title).save(path)


def colour_map(values: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """(h, w) numbers to colours (h, w, 3), from black to yellow.

    Args:
        limits: the values of black and yellow. None: the smallest value and the 99th percentile.
    """
    from matplotlib import colormaps

    low, high = limits if limits is not None else (values.min(), np.percentile(values, 99))
    return colormaps["inferno"](((values - low) / max(high - low, 1e-12)).clip(0, 1))[..., :3]
