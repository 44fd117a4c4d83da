"""Predictions for images larger than a network's window: overlapping windows, several scales, both flips.

Shapes: an image (C, H, W), `K` classes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """The starts of windows along a side: every `stride` pixels, the last one moved back to end with the image."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(index * stride + window, length) - window, 0) for index in range(count)]


def sliding_window_logits(
    predict: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int, batch_size: int
) -> Tensor:
    """For each pixel, the mean logits of all windows that contain it.

    Args:
        predict: windows (B, C, h, w) to logits (B, K, h, w).
        image: (C, H, W); a side shorter than the window is one window of that length.
        window, stride: in pixels.
        batch_size: windows in one call of `predict`.

    Returns:
        (K, H, W) float32.
    """
    height, width = image.shape[-2:]
    corners = [
        (top, left) for top in window_starts(height, window, stride) for left in window_starts(width, window, stride)
    ]
    total, count = 0.0, torch.zeros(height, width, device=image.device)
    for start in range(0, len(corners), batch_size):
        chunk = corners[start : start + batch_size]
        windows = torch.stack([image[:, top : top + window, left : left + window] for top, left in chunk])
        for (top, left), logits in zip(chunk, predict(windows).float(), strict=True):
            if isinstance(total, float):
                total = logits.new_zeros(len(logits), height, width)
            total[:, top : top + window, left : left + window] += logits
            count[top : top + window, left : left + window] += 1
    return total / count


def augmented_probabilities(
    logits_of: Callable[[Tensor], Tensor],
    images: Iterator[Tensor] | Sequence[Tensor],
    size: tuple[int, int],
    flip: bool,
) -> Tensor:
    """The mean class probabilities of one image at several scales and, with `flip`, also mirrored.

    Args:
        logits_of: (C, h, w) to logits (K, h, w).
        images: the image at each scale.
        size: (H, W), to which the logits are resized (bilinear) before the softmax.

    Returns:
        (K, H, W), in [0, 1].
    """
    total, count = torch.zeros(()), 0
    for image in images:
        for mirrored in (False, True) if flip else (False,):
            logits = logits_of(image.flip(-1) if mirrored else image)
            logits = logits.flip(-1) if mirrored else logits
            logits = interpolate(logits.unsqueeze(0), size, mode="bilinear", align_corners=False)[0]
            total, count = total.to(logits.device) + logits.softmax(dim=0), count + 1
    return total / count
