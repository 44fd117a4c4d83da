"""Block-wise masks over the patches of the global crops (DINOv2, section 4, the iBOT objective).

A mask is a union of rectangles of random area and aspect ratio, after BEiT. The draws come from a `random.Random`
handed in by the caller, so a batch's masks are a function of a seed and nothing else.
"""

import math
import random

import numpy as np
import torch


MAX_ATTEMPTS_PER_RECTANGLE = 10


class BlockMaskGenerator:
    """Draws one block mask over a grid of patches.

    Args:
        grid_size: rows and columns of the patch grid; one integer means a square.
        min_num_patches: smallest area of a rectangle, in patches.
        max_num_patches: largest area of a rectangle, in patches; by default half of the grid.
        aspect_ratio: range of height / width of a rectangle, drawn uniformly in its logarithm.

    Raises:
        ValueError: if a size is not positive, or if a range is empty.
    """

    def __init__(
        self,
        grid_size: tuple[int, int] | int,
        *,
        min_num_patches: int = 4,
        max_num_patches: int | None = None,
        aspect_ratio: tuple[float, float] = (0.3, 1 / 0.3),
    ):
        self.height, self.width = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        if self.height < 1 or self.width < 1:
            raise ValueError(f"grid_size is {grid_size}, but a grid needs at least one row and one column.")
        if min_num_patches < 1:
            raise ValueError(f"min_num_patches is {min_num_patches}, but a rectangle needs at least 1 patch.")
        if max_num_patches is None:
            max_num_patches = self.num_patches // 2
        elif max_num_patches < min_num_patches:
            raise ValueError(
                f"max_num_patches is {max_num_patches}, but it must be at least min_num_patches ({min_num_patches})."
            )
        if not 0 < aspect_ratio[0] <= aspect_ratio[1]:
            raise ValueError(f"aspect_ratio is {aspect_ratio}, but it must be two positive numbers, smaller first.")
        self.min_num_patches = min_num_patches
        self.max_num_patches = max_num_patches
        self.log_aspect_ratio = (math.log(aspect_ratio[0]), math.log(aspect_ratio[1]))

    @property
    def num_patches(self) -> int:
        """N, the number of patches in the grid."""
        return self.height * self.width

    def __call__(self, num_masked: int, rng: random.Random) -> np.ndarray:
        """Draw one mask.

        Args:
            num_masked: the number of patches to aim at. It is never exceeded; in about one draw of ten it is missed by
                a few patches, because ten rectangles in a row did not fit.
            rng: the source of every draw.

        Returns:
            A bool array of shape (height, width), True where the patch is masked.
        """
        mask = np.zeros((self.height, self.width), dtype=bool)
        count = 0
        while count < num_masked:
            added = self._add_rectangle(mask, min(num_masked - count, self.max_num_patches), rng)
            if added == 0:
                break
            count += added
        return mask

    def _add_rectangle(self, mask: np.ndarray, max_added: int, rng: random.Random) -> int:
        """Mask one more rectangle in place; returns how many patches it newly masked (0: none was found)."""
        for _ in range(MAX_ATTEMPTS_PER_RECTANGLE):
            area = rng.uniform(self.min_num_patches, max_added)
            aspect = math.exp(rng.uniform(*self.log_aspect_ratio))
            height = round(math.sqrt(area * aspect))
            width = round(math.sqrt(area / aspect))
            # Strict, as in the original: a rectangle never spans the whole grid.
            if height >= self.height or width >= self.width:
                continue
            top = rng.randint(0, self.height - height)
            left = rng.randint(0, self.width - width)
            rectangle = mask[top : top + height, left : left + width]
            added = rectangle.size - int(rectangle.sum())
            if 0 < added <= max_added:
                rectangle[:] = True
                return added
        return 0


def reference_max_num_patches(image_size: int, patch_size: int) -> int:
    """The `max_num_patches` that the original DINOv2 training passes for a square crop.

    The original multiplies and floor-divides in one chain, from left to right, so the value is not always half of the
    patches: 128 of 256 at 224/14 and 512 of 1024 at 512/16, but 666 of 1369 at 518/14, where half is 684. Use it to
    repeat the original's high-resolution phase exactly.

    Args:
        image_size: side of a global crop in pixels.
        patch_size: side of a patch in pixels.
    """
    return int(0.5 * image_size // patch_size * image_size // patch_size)


def reference_mask_generator(image_size: int, patch_size: int) -> BlockMaskGenerator:
    """The generator that the original uses for square crops of `image_size` pixels and patches of `patch_size`."""
    return BlockMaskGenerator(
        image_size // patch_size, max_num_patches=reference_max_num_patches(image_size, patch_size)
    )


def check_mask_settings(mask_probability: float, mask_ratio: tuple[float, float]) -> None:
    """Raise a ValueError if the masking probability or the range of ratios makes no sense."""
    if not 0 <= mask_probability <= 1:
        raise ValueError(f"mask_probability is {mask_probability}, but it must lie in [0, 1].")
    if not 0 <= mask_ratio[0] <= mask_ratio[1] <= 1:
        raise ValueError(f"mask_ratio is {mask_ratio}, but it must be two numbers in [0, 1], the smaller first.")


def draw_masks(
    num_crops: int,
    generator: BlockMaskGenerator,
    *,
    mask_probability: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    rng: random.Random,
) -> tuple[torch.Tensor, int]:
    """Draw the masks of all global crops of a batch.

    A fixed share of the crops is masked. Their ratios are stratified: the range is cut into as many equal parts as
    there are masked crops, and each crop draws its ratio from its own part. The masks are then dealt out at random, so
    an image may have none, one or both of its global crops masked.

    Args:
        num_crops: G*B, the number of global crops in the batch.
        generator: draws one mask.
        mask_probability: share of the crops that get a mask, in [0, 1], rounded down to a whole crop.
        mask_ratio: smallest and largest share of a masked crop's patches that are masked.
        rng: the source of every draw.

    Returns:
        The masks, bool of shape (num_crops, N), and an upper bound on the number of masked patches, which is the
        number reached if every crop drew the upper end of its part.

    Raises:
        ValueError: if the probability or the ratios are out of range.
    """
    check_mask_settings(mask_probability, mask_ratio)
    num_masked_crops = int(num_crops * mask_probability)
    # float32 tensors on purpose: the original truncates float32 products, and float64 gives other integers.
    bounds = torch.linspace(mask_ratio[0], mask_ratio[1], num_masked_crops + 1, dtype=torch.float32)
    masks = []
    upper_bound = 0
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        masks.append(generator(int(generator.num_patches * rng.uniform(low, high)), rng))
        upper_bound += int(generator.num_patches * high)
    masks += [generator(0, rng) for _ in range(num_crops - num_masked_crops)]
    rng.shuffle(masks)
    return torch.from_numpy(np.stack(masks)).flatten(1), upper_bound
