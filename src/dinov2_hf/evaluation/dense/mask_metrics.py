"""Metrics of predicted masks: intersection over union and accuracies, from numbers of pixels.

Shapes: `K` classes. The counts of a class are three numbers of pixels: correctly predicted, truly of this class, and
predicted as this class. They are (3, K) whole numbers, for one image or summed over images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_counts(truth: Tensor, prediction: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """The counts (3, K) of masks of class numbers, without the pixels whose truth is `ignore_index`."""
    counted = truth != ignore_index
    truth, prediction = truth[counted], prediction[counted]
    sets = (truth[truth == prediction], truth, prediction)
    return torch.stack([numbers.bincount(minlength=num_classes) for numbers in sets])


def mask_metrics(prefix: str, counts: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Metrics in [0, 1], by names that begin with the prefix.

    Args:
        counts: (3, K), over all images.
        names: of the classes.

    Returns:
        `{prefix}_miou`, the mean over the classes that occur in truth or predictions of intersection over union;
        `{prefix}_mean_accuracy` over the classes that occur in the truth; `{prefix}_pixel_accuracy`; and
        `{prefix}_iou_{class}` for each class that occurs in either.
    """
    hits, truth, _ = counts.double()
    iou = _iou(counts)
    metrics = {
        "miou": iou.nanmean(),
        "mean_accuracy": (hits / truth).nanmean(),
        "pixel_accuracy": hits.sum() / truth.sum(),
        **{f"iou_{name}": value for name, value in zip(names, iou, strict=True) if not value.isnan()},
    }
    return {f"{prefix}_{name}": float(value) for name, value in metrics.items()}


def miou_standard_error(counts: Tensor) -> float:
    """The standard error of the mean IoU over images, by the jackknife.

    Args:
        counts: (n, 3, K), for each of n images.

    Returns:
        `sqrt((n - 1) / n * sum of (m_i - mean of m)^2)`, where `m_i` is the mean IoU of all images except the i-th.
        NaN for fewer than two images.
    """
    n = len(counts)
    if n < 2:
        return float("nan")
    without = _iou(counts.sum(dim=0) - counts).nanmean(dim=-1)
    return float(((n - 1) / n * (without - without.nanmean()).square().nansum()).sqrt())


def _iou(counts: Tensor) -> Tensor:
    """IoU (..., K) from counts (..., 3, K); NaN for a class that is neither in the truth nor predicted."""
    hits, truth, predicted = counts.double().unbind(dim=-2)
    return hits / (truth + predicted - hits)
