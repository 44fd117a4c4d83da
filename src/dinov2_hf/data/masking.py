"""Masks over the patches of the global crops (DINOv2, section 4, the iBOT objective).

The draws come from a `random.Random` that the caller passes, so the masks of a batch are a function of a seed only.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch

from ..named_objects import Registry


# A kind of masks is a function (grid_size, num_masked, rng) -> bool array of grid_size, True where a patch is masked.
Masks = Callable[[tuple[int, int], int, random.Random], np.ndarray]
MASKS = Registry("kind of masks")
MIN_NUM_PATCHES = 4
ASPECT_RATIO = (0.3, 1 / 0.3)
MAX_ATTEMPTS_PER_RECTANGLE = 10


@MASKS.register("block")
def block_mask(grid_size: tuple[int, int], num_masked: int, rng: random.Random) -> np.ndarray:
    """A union of rectangles of random area and aspect ratio, after BEiT: the masks of DINOv2.

    Args:
        grid_size: rows and columns of the patch grid.
        num_masked: the number of patches to aim at. It is never exceeded; in about one draw of ten it is missed by
            a few patches, because ten rectangles in a row did not fit.
        rng: the source of every draw.

    Returns:
        A bool array of shape `grid_size`, True where the patch is masked.
    """
    mask, count, added = np.zeros(grid_size, dtype=bool), 0, 1
    while count < num_masked and added:
        added = add_rectangle(mask, min(num_masked - count, largest_area(*grid_size)), rng)
        count += added
    return mask


def largest_area(rows: int, columns: int) -> int:
    """The largest area of a rectangle, in patches, by the original's chain of products and floor divisions. It is not
    always half of the patches: 666 of 1369 at 518/14, where half is 684.
    """
    return rows // 2 * columns


def add_rectangle(mask: np.ndarray, max_added: int, rng: random.Random) -> int:
    """Mask one more rectangle in place; returns how many patches it newly masked (0: none was found)."""
    rows, columns = mask.shape
    for _ in range(MAX_ATTEMPTS_PER_RECTANGLE):
        area = rng.uniform(MIN_NUM_PATCHES, max_added)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECT_RATIO)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        # Strict, as in the original: a rectangle never spans the whole grid.
        if height >= rows or width >= columns:
            continue
        top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
        rectangle = mask[top : top + height, left : left + width]
        added = rectangle.size - int(rectangle.sum())
        if 0 < added <= max_added:
            rectangle[:] = True
            return added
    return 0


def check_mask_settings(mask_probability: float, mask_ratio: tuple[float, float]) -> None:
    """Raise a ValueError if the masking probability or the range of ratios is invalid."""
    if not 0 <= mask_probability <= 1:
        raise ValueError(f"mask_probability is {mask_probability}, but it must lie in [0, 1].")
    if not 0 <= mask_ratio[0] <= mask_ratio[1] <= 1:
        raise ValueError(f"mask_ratio is {mask_ratio}, but it must be two numbers in [0, 1], the smaller first.")


def draw_masks(
    num_crops: int,
    grid_size: tuple[int, int],
    *,
    masks: Masks = block_mask,
    mask_probability: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    rng: random.Random,
) -> torch.Tensor:
    """Draw the masks of all global crops of a batch.

    A fixed share of the crops is masked. Their ratios are stratified: the range is divided into as many equal parts as
    there are masked crops, and each crop draws its ratio from its own part. The masks are then assigned at random, so
    an image may have none, one or both of its global crops masked.

    Args:
        num_crops: G*B, the number of global crops in the batch.
        grid_size: rows and columns of the patches of a crop, N in all.
        masks: draws one mask.
        mask_probability: share of the crops that get a mask, in [0, 1], rounded down to a whole crop.
        mask_ratio: smallest and largest share of a masked crop's patches that are masked.
        rng: the source of every draw.

    Returns:
        bool of shape (num_crops, N).

    Raises:
        ValueError: the probability or the ratios are out of range, or `masks` does not return a mask of the grid.
    """
    check_mask_settings(mask_probability, mask_ratio)
    bounds = _ratio_bounds(num_crops, mask_probability, mask_ratio)
    num_patches, drawn = math.prod(grid_size), []
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        mask = np.asarray(masks(grid_size, int(num_patches * rng.uniform(low, high)), rng))
        if mask.shape != grid_size or mask.dtype != bool:
            raise ValueError(
                f"a mask of {masks.__qualname__} has the shape {mask.shape} and the type {mask.dtype}, but it must be "
                f"bool and of the shape {grid_size}."
            )
        drawn.append(mask)
    drawn += [np.zeros(grid_size, dtype=bool)] * (num_crops - len(drawn))
    rng.shuffle(drawn)
    return torch.from_numpy(np.stack(drawn)).flatten(1)


def most_masked(
    num_crops: int, num_patches: int, *, mask_probability: float = 0.5, mask_ratio: tuple[float, float] = (0.1, 0.5)
) -> int:
    """The largest total number of patches that `draw_masks` asks for in a batch. The arguments are the same.

    On average it asks for less, by half of the difference of the ratios, times the patches of one crop.
    """
    bounds = _ratio_bounds(num_crops, mask_probability, mask_ratio)
    return sum(int(num_patches * high) for high in bounds[1:])


def _ratio_bounds(num_crops: int, mask_probability: float, mask_ratio: tuple[float, float]) -> torch.Tensor:
    """The bounds of the parts from which masked crops draw their ratios: one more than there are such crops."""
    # float32 tensors on purpose: the original truncates float32 products, and float64 gives other integers.
    return torch.linspace(*mask_ratio, int(num_crops * mask_probability) + 1, dtype=torch.float32)
