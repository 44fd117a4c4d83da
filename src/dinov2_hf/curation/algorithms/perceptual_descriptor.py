"""A descriptor of pictures that needs no trained network, for finding copies.

A picture is described by the statistics of its small parts. So a change that leaves most parts alone (recompression,
rescaling, crops, mirroring, colours, borders, text over it, slight rotation) leaves most of the descriptor alone:

1. One-coloured borders are trimmed, and the grey picture is brought to an area of 128 x 128 pixels.
2. Patches of four sizes on a dense grid are described by histograms of gradient orientations, 4 x 4 cells of 8
   (as in SIFT: Lowe 2004), with square roots taken (Arandjelovic & Zisserman 2012). Flat patches weigh little.
3. Each patch is mapped by random Fourier features (Rahimi & Recht 2007): the product of two maps is near 1 for equal
   patches and near 0 for patches that are not alike. The maps are summed over the patches and over their mirror
   images. The product of two sums then counts what two pictures share, wherever it lies. One half of the features sees
   a patch as it is, which bears rotation and crops best. The other half sees how it differs from an even texture,
   which tells grass from sand.
4. The mean over a sample of the pool is subtracted, and directions of much variance are toned down. What all pictures
   of a pool have in common cannot tell them apart.

Shapes: `P` patches of a picture, `D` width of the descriptor (512).
"""

import math
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .generated_pictures import generated_picture
from .picture_borders import trim_borders
from .pool_whitening import FEW_IMAGES, PoolWhitening


WIDTH = 512
SIDE = 128  # all pictures are brought to the area of a square with this side
PATCH_SIDES = (28, 44, 68, 96)
STRIDE = 5
CELLS = 4
ORIENTATIONS = 8
# The factors in exp(-sharpness * squared distance). Unlike patches have a squared distance of about 1, those of a copy
# under 0.2. What sets unlike patches apart from an even texture, brought to unit length, has a squared distance of 2.
SHARPNESS = 8.0
CONTRAST_SHARPNESS = 2.0
LOW_CONTRAST = 0.3  # a patch at this distance from the even texture weighs half
FLAT_GRADIENT = 0.02  # a patch with this mean gradient (of grey in [0, 1]) weighs half


class PerceptualDescriptor(PoolWhitening):
    """The last step: from sums of patches to descriptors, centred on a sample of the pool."""

    given_width = width = WIDTH
    toning = 0.4
    most_toned = 64
    images_per_toned = 2
    prior_images = 2

    def of_generated_pictures(self) -> Tensor:
        return _sums_of_generated_pictures()

    def describe(self, images: Iterable[Image.Image]) -> Tensor:
        """(n, D) descriptors of a few RGB pictures, made without workers or progress."""
        return self(PatchSums()(list(images)))


@cache
def _sums_of_generated_pictures() -> Tensor:
    return PatchSums()([generated_picture(seed) for seed in range(FEW_IMAGES)])


class PatchSums:
    """Steps 1 to 3; they run in the workers of the data loader, if there are any."""

    def __init__(self):
        # The seed is always the same, so descriptors of different runs and machines can be compared.
        random = np.random.Generator(np.random.PCG64(0))
        size = (2, CELLS * CELLS * ORIENTATIONS, WIDTH // 2)
        sharpness = np.array([SHARPNESS, CONTRAST_SHARPNESS])[:, None, None]
        self.frequencies = torch.from_numpy((random.normal(size=size) * np.sqrt(2 * sharpness)).astype(np.float32))
        self.phases = torch.from_numpy(random.uniform(0, 2 * math.pi, (2, WIDTH // 2)).astype(np.float32))

    def __call__(self, images: list[Image.Image]) -> Tensor:
        """(n, D) sums of unit length; a picture without structure has the zero vector."""
        # The operations are small: one core is 5 times faster than all cores of a busy machine together.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return torch.stack([self.sum_of_patches(image) for image in images])
        finally:
            torch.set_num_threads(num_threads)

    def sum_of_patches(self, image: Image.Image) -> Tensor:
        """The sum of one picture, (D,)."""
        sums = summed_area(oriented_gradients(grey_picture(image)))
        patches = torch.cat([patches_of(sums, side) for side in PATCH_SIDES]).clamp(min=0)
        total = self._mapped(patches) + self._mapped(mirrored(patches))
        return F.normalize(total, dim=1).flatten() / math.sqrt(2) if total.abs().max() > 1e-6 else torch.zeros(WIDTH)

    def _mapped(self, patches: Tensor) -> Tensor:
        """(2, D / 2): sums over the patches of both kinds of features."""
        strength = patches.flatten(1).sum(dim=1, keepdim=True)
        mean_gradient = strength / CELLS**2
        weight = mean_gradient**2 / (mean_gradient**2 + FLAT_GRADIENT**2)
        unit = (patches.flatten(1) / strength.clamp(min=1e-8)).sqrt()
        contrast = unit - unit.shape[1] ** -0.5
        distance = contrast.norm(dim=1, keepdim=True)
        contrast_weight = weight * distance**2 / (distance**2 + LOW_CONTRAST**2)
        seen = (unit, weight), (contrast / distance.clamp(min=1e-6), contrast_weight)
        return torch.stack(
            [
                (weight * torch.cos(patch @ frequencies + phases)).sum(dim=0)
                for (patch, weight), frequencies, phases in zip(seen, self.frequencies, self.phases, strict=True)
            ]
        )


def grey_picture(image: Image.Image) -> Tensor:
    """(h, w) in [0, 1], about `SIDE` x `SIDE` pixels: borders are trimmed, the shape is kept (up to 4 : 1)."""
    image = trim_borders(image.convert("RGB")).convert("L")
    ratio = min(4.0, max(0.25, image.width / image.height))
    width, height = round(SIDE * math.sqrt(ratio)), round(SIDE / math.sqrt(ratio))
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)


def oriented_gradients(grey: Tensor) -> Tensor:
    """(ORIENTATIONS, h, w): the gradient at each pixel, shared between the orientations that are near to it."""
    smooth = F.avg_pool2d(grey[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    dx, dy = torch.zeros_like(smooth), torch.zeros_like(smooth)
    dx[:, 1:-1] = smooth[:, 2:] - smooth[:, :-2]
    dy[1:-1] = smooth[2:] - smooth[:-2]
    directions = torch.arange(ORIENTATIONS) * (2 * math.pi / ORIENTATIONS)
    along = dx * directions.cos()[:, None, None] + dy * directions.sin()[:, None, None]
    magnitude = torch.sqrt(dx**2 + dy**2).clamp(min=1e-12)
    return magnitude * (along.clamp(min=0) / magnitude) ** 4


def summed_area(gradients: Tensor) -> Tensor:
    """(ORIENTATIONS, h + 1, w + 1): sums over all pixels above and to the left. The sum over a box needs 4 of them."""
    return F.pad(gradients.double().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))


def patches_of(sums: Tensor, side: int) -> Tensor:
    """(P, CELLS, CELLS, ORIENTATIONS): mean gradients in the cells of all patches of a size on a grid.

    Args:
        sums: from `summed_area`.
        side: of the patches, in pixels.
    """
    height, width = sums.shape[-2] - 1, sums.shape[-1] - 1
    if min(height, width) < side:
        return torch.zeros(0, CELLS, CELLS, ORIENTATIONS)
    cell = side // CELLS
    # Larger patches change more slowly from place to place.
    stride = STRIDE * max(1, side // 44)
    corners = torch.arange(CELLS + 1) * cell
    rows = torch.arange(0, height - side + 1, stride)[:, None] + corners
    columns = torch.arange(0, width - side + 1, stride)[:, None] + corners
    boxes = sums[:, rows][:, :, :, columns].diff(dim=2).diff(dim=4) / cell**2
    return boxes.float().permute(1, 3, 2, 4, 0).reshape(-1, CELLS, CELLS, ORIENTATIONS)


def mirrored(patches: Tensor) -> Tensor:
    """The patches of the picture seen in a mirror: columns reversed, angle a becomes pi - a."""
    orientations = (ORIENTATIONS // 2 - torch.arange(ORIENTATIONS)) % ORIENTATIONS
    return patches.flip(2)[..., orientations]
