"""The random crops for training segmentation heads (paper, appendix B.2)."""

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .pixel_pairs import PixelNormalization


CROP_TRIES = 10


class SegmentationCrop:
    """
    Resize by a random ratio, random crop, flip, photometric distortion, normalise.

    Args:
        image_size: S, side of the crop; the short side is resized to S times a ratio drawn from `scale_range`.
        scale_range: range of that ratio; below 1 the image may be smaller than the crop, and is padded (with zeros
            after normalisation, and with `ignore_index`).
        ignore_index: the number of pixels without a class.
        normalize: normalisation of the pixels.
        max_class_ratio: up to 10 crops are drawn until no class covers more than this share of the labelled pixels.

    Colours are distorted if there are 3 channels: brightness, contrast, saturation and hue, each with probability one
    half, in the ranges of mmsegmentation and with torchvision's operations (where brightness is a factor, not an
    offset).
    """

    def __init__(
        self,
        image_size: int,
        scale_range: tuple[float, float],
        ignore_index: int,
        normalize: PixelNormalization,
        max_class_ratio: float = 0.75,
    ):
        self.image_size, self.scale_range = image_size, scale_range
        self.ignore_index, self.normalize, self.max_class_ratio = ignore_index, normalize, max_class_ratio
        brightness, contrast, saturation, hue = (
            v2.RandomApply([v2.ColorJitter(**{name: amount})], p=0.5)
            for name, amount in (("brightness", 32 / 255), ("contrast", 0.5), ("saturation", 0.5), ("hue", 0.1))
        )
        self.distortions = (
            v2.Compose([brightness, contrast, saturation, hue]),
            v2.Compose([brightness, saturation, hue, contrast]),
        )

    def __call__(self, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """(C, H, W) and (H, W) to float32 (C, S, S) and int64 (S, S)."""
        short_side = max(1, round(self.image_size * float(torch.empty(()).uniform_(*self.scale_range))))
        image = F.resize(image, [short_side], antialias=True)
        mask = F.resize(mask.unsqueeze(0), [short_side]).squeeze(0)
        top, left = self._balanced_corner(mask)
        size = self.image_size
        image, mask = image[:, top : top + size, left : left + size], mask[top : top + size, left : left + size]
        if torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask.flip(-1)
        if len(image) == 3:
            image = self.distortions[int(torch.randint(2, ()))](tv_tensors.Image(image))
        image = self.normalize(image)
        padding = (0, size - image.shape[-1], 0, size - image.shape[-2])
        pad = torch.nn.functional.pad
        mask = mask.as_subclass(Tensor)
        return pad(image, padding), pad(mask, padding, value=self.ignore_index)

    def _balanced_corner(self, mask: Tensor) -> tuple[int, int]:
        height, width = mask.shape
        for _ in range(CROP_TRIES):
            top = int(torch.randint(max(height - self.image_size, 0) + 1, ()))
            left = int(torch.randint(max(width - self.image_size, 0) + 1, ()))
            crop = mask[top : top + self.image_size, left : left + self.image_size]
            counts = crop[crop != self.ignore_index].unique(return_counts=True)[1]
            if len(counts) > 1 and counts.max() < self.max_class_ratio * counts.sum():
                break
        return top, left
