"""Depth maps: decoding, which pixels count, and the random crops that depth heads are trained on."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .depth_benchmarks import DepthBenchmark
from .pixel_pairs import PixelNormalization, decode_map


def decode_depth(value: Any, depth_scale: float) -> np.ndarray:
    """One depth map.

    Args:
        value: as in `decode_map`.
        depth_scale: stored numbers in one unit of depth.

    Returns:
        (H, W) float32; 0 means no measurement: the stored number is 0 or below, infinite or NaN.

    Raises:
        UndecodableImage: the file is broken, or has more than one number for a pixel.
    """
    depth = decode_map(value, "iuf", "number")
    depth = depth.astype(np.float32) / np.float32(depth_scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def lower_middle(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The part of `(..., H, W)` that KITTI uses, at the bottom and in the middle; the whole image without a size."""
    if size is None:
        return image
    height, width = image.shape[-2:]
    top, left = max(height - size[0], 0), max((width - size[1]) // 2, 0)
    return image[..., top : top + size[0], left : left + size[1]]


def judged_box(depth: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """A bool map (H, W) of the pixels inside the box of a benchmark."""
    height, width = depth.shape
    inside = torch.zeros_like(depth, dtype=torch.bool)
    # A product just below an integer, by floating-point rounding, means this integer.
    top, bottom = (int(fraction * height + 1e-6) for fraction in box[:2])
    left, right = (int(fraction * width + 1e-6) for fraction in box[2:])
    inside[top:bottom, left:right] = True
    return inside


class DepthCrop:
    """
    Rotation, flip, random crop and colours by the rules of the benchmark; each except the crop has probability one
    half.

    An image smaller than the crop is padded below and to the right, with zeros after normalisation and with depth 0,
    which is not a measurement.
    """

    def __init__(self, benchmark: DepthBenchmark, normalize: PixelNormalization):
        self.benchmark, self.normalize = benchmark, normalize

    def __call__(self, image: tv_tensors.Image, depth: tv_tensors.Mask) -> tuple[Tensor, Tensor]:
        """(C, H, W) and (H, W) to float32 (C, height, width) and (height, width) of the crop."""
        rules = self.benchmark
        image = lower_middle(image.as_subclass(Tensor), rules.image_box_size)
        depth = lower_middle(depth.as_subclass(Tensor), rules.image_box_size)
        if rules.training_box is not None:
            top, bottom, left, right = rules.training_box
            image, depth = image[:, top:bottom, left:right], depth[top:bottom, left:right]
        if rules.max_rotation and torch.rand(()) < 0.5:
            angle = float(torch.empty(()).uniform_(-rules.max_rotation, rules.max_rotation))
            image = F.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
            depth = F.rotate(depth[None], angle, interpolation=InterpolationMode.NEAREST)[0]
        if torch.rand(()) < 0.5:
            image, depth = image.flip(-1), depth.flip(-1)
        height, width = rules.crop_size
        top = int(torch.randint(max(image.shape[-2] - height, 0) + 1, ()))
        left = int(torch.randint(max(image.shape[-1] - width, 0) + 1, ()))
        image, depth = (
            image[:, top : top + height, left : left + width],
            depth[top : top + height, left : left + width],
        )
        if len(image) == 3 and torch.rand(()) < 0.5:
            image = distort_colours(image, rules.brightness_range)
        image = self.normalize(image)
        padding = (0, width - image.shape[-1], 0, height - image.shape[-2])
        return torch.nn.functional.pad(image, padding), torch.nn.functional.pad(depth, padding)


def distort_colours(image: Tensor, brightness_range: tuple[float, float]) -> Tensor:
    """A random gamma (0.9 to 1.1), brightness, and factor for each of the channels (0.9 to 1.1)."""
    gamma = torch.empty(()).uniform_(0.9, 1.1)
    brightness = torch.empty(()).uniform_(*brightness_range)
    colours = torch.empty(len(image), 1, 1).uniform_(0.9, 1.1)
    return ((image.float() / 255) ** gamma * brightness * colours).clamp(0, 1) * 255
