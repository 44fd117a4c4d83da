"""Pictures of predicted masks and depths beside the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from .channels_as_rgb import rgb_picture
from .grid import Cell, PictureGrid, shortened


WIDTH = 3.2  # of one picture, in inches
UNLABELLED = (0.85, 0.85, 0.85)


def class_colours(num_classes: int) -> np.ndarray:
    """(num_classes, 3) colours in [0, 1] that differ between neighbouring numbers."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    if num_classes <= 20:
        # The strong half of the twenty first.
        colours = colormaps["tab20"](np.arange(20))[:, :3]
        return np.concatenate([colours[::2], colours[1::2]])[:num_classes]
    numbers = np.arange(num_classes)
    hues, values = numbers * 0.618034 % 1, np.array([1.0, 0.75, 0.55])[numbers % 3]
    return hsv_to_rgb(np.stack([hues, np.full(num_classes, 0.85), values], axis=1))


def draw_masks(
    pictures: Sequence[tuple[Tensor, Tensor, Tensor]], path: str | Path, *, names: Sequence[str], ignore_index: int
) -> None:
    """One row for each image: the image, its true mask and the predicted one, and a legend of the classes in them.

    Args:
        pictures: (image (C, H, W) on the scale of 0 to 255, truth (H, W), prediction (H, W)).
        path: the PNG; missing folders are made, and the file appears complete or not at all.
        names: of the classes.
        ignore_index: drawn grey in the truth; the prediction is not judged there and drawn paler.
    """
    from matplotlib.patches import Patch

    colours = class_colours(len(names))
    present = sorted({int(number) for _, *masks in pictures for mask in masks for number in mask.unique()})
    rows = []
    for image, truth, prediction in pictures:
        ignored = (truth == ignore_index).numpy()
        painted_truth = painted_mask(truth, colours, ignored)
        painted = painted_mask(prediction, colours, np.zeros_like(ignored))
        painted[ignored] = 0.35 * painted[ignored] + 0.65
        rows.append(
            [Cell(picture) for picture in (rgb_picture(image.permute(1, 2, 0).numpy()), painted_truth, painted)]
        )
    legend = [
        Patch(color=colours[number], label=shortened(names[number])) for number in present if number != ignore_index
    ]
    if any((truth == ignore_index).any() for _, truth, _ in pictures):
        legend.append(Patch(color=UNLABELLED, label="(not labelled)"))
    PictureGrid(rows, headings=("image", "truth", "prediction"), cell_width=WIDTH, legend=legend).save(path)


def draw_depths(pictures: Sequence[tuple[Tensor, Tensor, Tensor]], path: str | Path) -> None:
    """One row for each image: the image, its true depth, the predicted depth, and the relative error.

    Args:
        pictures: (image (C, H, W) on the scale of 0 to 255, truth (H, W), prediction (H, W)); truth is 0 where it is
            not known.
        path: as in `draw_masks`.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    known = np.concatenate([truth[truth > 0].numpy().ravel() for _, truth, _ in pictures] or [np.zeros(1)])
    low, high = np.percentile(known, [1, 99]) if len(known) else (0.0, 1.0)
    depth_scale, error_scale = Normalize(low, high, clip=True), Normalize(0, 0.5, clip=True)
    depth_map, error_map = colormaps["viridis_r"], colormaps["magma"]
    rows = []
    for image, *depths in pictures:
        truth, prediction = (depth.numpy() for depth in depths)
        error = np.abs(prediction - truth) / np.where(truth > 0, truth, 1)
        painted_truth, painted = (np.asarray(depth_map(depth_scale(depth)))[..., :3] for depth in (truth, prediction))
        painted_error = np.asarray(error_map(error_scale(error)))[..., :3]
        painted_truth[truth <= 0] = painted_error[truth <= 0] = UNLABELLED
        rows.append(
            [
                Cell(picture)
                for picture in (rgb_picture(image.permute(1, 2, 0).numpy()), painted_truth, painted, painted_error)
            ]
        )
    scales = [
        (ScalarMappable(depth_scale, depth_map), "depth"),
        (ScalarMappable(error_scale, error_map), "|error| / truth"),
    ]
    headings = ("image", "truth", "prediction", "relative error")
    PictureGrid(rows, headings=headings, cell_width=WIDTH, scales=scales).save(path)


def painted_mask(mask: Tensor, colours: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Class numbers (H, W) as colours (H, W, 3) of `class_colours`, and grey where they are ignored."""
    painted = colours[np.where(ignored, 0, mask.numpy())]
    painted[ignored] = UNLABELLED
    return painted
