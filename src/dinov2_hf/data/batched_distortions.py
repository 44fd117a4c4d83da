"""Distorts all crops of a batch at once, each with its own numbers, on any device.

The numbers stay on the CPU, so that nothing waits for the device.
"""

from collections.abc import Callable
from typing import Any

import torch

from .distortions import BLUR_RADIUS, GREY_WEIGHTS, JITTER_ORDERS, SOLARIZE_THRESHOLD, Distortion


_PLACES = torch.tensor([[order.index(name) for name in Distortion._fields[:4]] for order in JITTER_ORDERS])


def distort_batch(crops: torch.Tensor, distortions: torch.Tensor) -> torch.Tensor:
    """Apply a distortion to each crop.

    Args:
        crops: (n, C, s, s), from 0 to 255, on any device. Only crops with three channels can have distortions other
            than flip and blur.
        distortions: float32 of shape (n, 10), on the CPU; each row is a `Distortion`.

    Returns:
        float32 of the same shape, from 0 to 255.
    """
    numbers: Any = Distortion(*distortions.unbind(1))  # type: ignore[arg-type]  # of each a number for every crop
    crops = crops.to(torch.float32, copy=True)
    _change(crops, numbers.is_flipped > 0, lambda some: some.flip(-1))
    if numbers.is_jittered.any():
        crops = _jitter(crops, numbers)
    _change(crops, numbers.is_grey > 0, lambda some: _grey(some).expand_as(some))
    _change(crops, numbers.blur_sigma > 0, gaussian_blur, numbers.blur_sigma)
    _change(crops, numbers.is_solarized > 0, lambda some: torch.where(some < SOLARIZE_THRESHOLD, some, 255 - some))
    return crops


def adjust_hue(crops: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Rotate the hues of crops (n, 3, h, w), by shifts (n,) in turns of the colour circle."""
    red, green, blue = crops.unbind(1)
    value = crops.amax(1)
    chroma = value - crops.amin(1)
    some = chroma.clamp(min=1e-6)  # without chroma, hue has no effect
    sixths = torch.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some)
    sixths = torch.where(value == red, (green - blue) / some, sixths) + 6 * shifts.view(-1, 1, 1)
    places = torch.stack([sixths + first for first in (5, 3, 1)], dim=1) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(places, 4 - places).clamp_(0, 1)


def gaussian_blur(crops: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """torchvision's 9 x 9 blur: rows and columns of each crop times one matrix. Edges are reflected.

    Args:
        crops: float32 of shape (n, C, s, s).
        sigmas: float32 of shape (n,), in pixels, on the same device.
    """
    size, device = crops.shape[-1], crops.device
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=device)
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    positions = torch.arange(size, device=device)
    sources = (positions[:, None] + offsets[:, None, None]).abs()
    sources = torch.where(sources < size, sources, 2 * (size - 1) - sources)  # (9, s, 1)
    taken = (sources == positions).float()  # (9, s, s): the pixel that each kernel element reads, for each pixel
    matrices = torch.einsum("nk,kij->nij", kernels, taken).unsqueeze(1)
    return matrices @ crops @ matrices.mT


def _jitter(crops: torch.Tensor, numbers: Any) -> torch.Tensor:
    places = _PLACES[numbers.order.long()]  # (n, 4): the step of brightness, contrast, and so on, for each crop
    for place in range(4):
        brightness, contrast, saturation = (
            torch.where(places[:, kind] == place, numbers[kind], 1.0) for kind in range(3)
        )
        # This step is one of them or hue. All three are weighted sums of crop, grey picture and its mean.
        weights = torch.stack([brightness * contrast * saturation, 1 - saturation, 1 - contrast])
        own, of_grey, of_mean = weights.to(crops.device, non_blocking=True).view(3, -1, 1, 1, 1)
        grey = _grey(crops)
        added = of_grey * grey + of_mean * grey.mean((2, 3), keepdim=True)
        crops = torch.addcmul(added, own, crops).clamp_(0, 255).floor_()  # as with 8-bit images, after every step
        _change(crops, (places[:, 3] == place) & (numbers.hue != 0), adjust_hue, numbers.hue)
    return crops


def _grey(crops: torch.Tensor) -> torch.Tensor:
    red, green, blue = (weight * color for weight, color in zip(GREY_WEIGHTS, crops.unbind(1), strict=True))
    return (red + green + blue).unsqueeze(1)


def _change(
    crops: torch.Tensor, which: torch.Tensor, change: Callable[..., torch.Tensor], *values: torch.Tensor
) -> None:
    """Change some crops in place, each with its own value. `which` (n,) is bool, on the CPU."""
    rows = which.nonzero().squeeze(1)
    if len(rows):
        own = [value[rows].to(crops.device, non_blocking=True) for value in values]
        rows = rows.to(crops.device, non_blocking=True)
        crops.index_copy_(0, rows, change(crops.index_select(0, rows), *own))
