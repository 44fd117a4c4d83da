"""Images as a model sees them, and rows of pictures in a PNG."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..features import patch_size_of, process_images
from .figures import new_figure, save_figure


# Inches.
CELL_WIDTH = 1.8
GAP = 0.06
LINE = 0.22
CAPTION = {"fontsize": 8, "va": "top", "ha": "center", "linespacing": 1.1}
CHARACTERS_PER_CELL = 26


def prepare_pictures(
    model: nn.Module,
    images: Sequence[Image.Image] | Sequence[np.ndarray],
    image_processor: Any,
    image_size: int | None = None,
) -> tuple[Tensor, list[Image.Image]]:
    """Pixel values for the model, and the same crops as pictures.

    Args:
        model: one with `config.patch_size` where `image_size` is given.
        images: PIL images, or arrays (height, width, channels) of `decode_channels`, of which the first three channels
            are shown, each stretched to the range of its values.
        image_processor: any transformers image processor.
        image_size: resize the short side to this many pixels and crop a square of it, a multiple of the patch size; a
            larger one gives a finer patch grid. None: as the image processor is configured.

    Returns:
        (n, channels, height, width), and n pictures of mode RGB.

    Raises:
        ValueError: there is no image, or `image_size` is not a multiple of the patch size.
    """
    if len(images) == 0:
        raise ValueError("images has 0 pictures, but at least 1 is needed.")
    overrides = {}
    if image_size is not None:
        patch_size = patch_size_of(model)
        if image_size < 1 or any(image_size % side for side in patch_size):
            sides = " x ".join(map(str, patch_size))
            raise ValueError(f"`image_size` is {image_size}, but must be a multiple of the patch size, {sides}.")
        overrides = {
            "do_resize": True,
            "size": {"shortest_edge": image_size},
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
        }
    images = [image.convert("RGB") if isinstance(image, Image.Image) else image for image in images]
    pixel_values = process_images(image_processor, images, **overrides)
    # The same crop without the normalisation is what the model saw, as a picture.
    pictures = process_images(image_processor, images, **{**overrides, "do_rescale": True, "do_normalize": False})
    if isinstance(images[0], np.ndarray):
        pictures = pictures[:, [0, 1, 2] if pictures.shape[1] > 2 else [0, 0, 0]]
        low, high = (limit(pictures, dim=(0, 2, 3), keepdim=True) for limit in (torch.amin, torch.amax))
        pictures = (pictures - low) / (high - low).clamp_min(1e-12)
    pictures = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return pixel_values, [Image.fromarray(picture) for picture in pictures]


@dataclass
class Cell:
    """One picture of a grid.

    Attributes:
        picture: an image, or an array (height, width, 3) in [0, 1] whose pixels are drawn as squares.
        caption: lines below it; of each, as much as fits.
    """

    picture: Image.Image | np.ndarray
    caption: str = ""


@dataclass
class PictureGrid:
    """Rows of cells, drawn from the top left; all cells are as high as the first picture asks for.

    Attributes:
        rows: of cells; their lengths may differ.
        row_gaps: space above a row beyond the usual gap, in gaps, by the number of the row.
        headings: a line above each column.
        title: a line above everything.
    """

    rows: list[list[Cell]]
    row_gaps: dict[int, int] = field(default_factory=dict)
    headings: Sequence[str] = ()
    title: str | None = None

    def save(self, path: str | os.PathLike) -> Path:
        """Draw to a PNG; missing folders are made, and the file appears complete or not at all."""
        first = np.asarray(self.rows[0][0].picture)
        cell_height = CELL_WIDTH * first.shape[0] / first.shape[1]
        num_lines = max(len(cell.caption.splitlines()) for row in self.rows for cell in row)
        caption_height = num_lines * LINE * 0.7
        top = (0.36 if self.title else 0.0) + (LINE if self.headings else 0.0)
        tops = []
        for number in range(len(self.rows)):
            top += self.row_gaps.get(number, 0) * GAP
            tops.append(top)
            top += cell_height + GAP + caption_height
        width = max(len(row) for row in self.rows) * (CELL_WIDTH + GAP)
        figure = new_figure(width, top)
        if self.title:
            figure.text(0, 1, self.title, fontsize=13, va="top", ha="left")
        for column, heading in enumerate(self.headings):
            centre = column * (CELL_WIDTH + GAP) + CELL_WIDTH / 2
            figure.text(centre / width, 1 - (tops[0] - GAP) / top, heading, fontsize=9, va="bottom", ha="center")
        for row, row_top in zip(self.rows, tops, strict=True):
            for column, cell in enumerate(row):
                left = column * (CELL_WIDTH + GAP)
                bottom = top - row_top - cell_height
                axes = figure.add_axes((left / width, bottom / top, CELL_WIDTH / width, cell_height / top))
                squares = not isinstance(cell.picture, Image.Image)
                picture = cell.picture if squares else np.asarray(cell.picture.convert("RGB"))
                axes.imshow(picture, interpolation="nearest" if squares else "antialiased")
                axes.set_axis_off()
                if cell.caption:
                    centre = (left + CELL_WIDTH / 2) / width
                    figure.text(centre, (bottom - GAP / 2) / top, shortened(cell.caption), **CAPTION)
        # The tight box also makes room for a title longer than the row of pictures.
        return save_figure(figure, path, pad_inches=0.12)


def shortened(caption: str) -> str:
    """Every line cut to the width of a cell."""
    return "\n".join(
        line if len(line) <= CHARACTERS_PER_CELL else line[: CHARACTERS_PER_CELL - 1] + "…"
        for line in caption.splitlines()
    )
