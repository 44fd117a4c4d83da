"""The training loss of depth heads, and the errors of a predicted depth (Eigen et al. 2014)."""

import torch
from torch import Tensor


LOG_EPSILON = 0.001
MEAN_WEIGHT = 0.15
# Steps in which only the mean counts; a tenth of the steps if there are fewer than 1,000.
SIGLOSS_WARMUP_STEPS = 100


def sigloss(prediction: Tensor, depth: Tensor, valid: Tensor | None = None, warmup: bool = False) -> Tensor:
    """The scale-invariant log loss (Eigen et al. 2014) in the original's form, `sqrt(Var(g) + 0.15 mean(g)^2)`.

    `g = log(prediction + 0.001) - log(depth + 0.001)` over all valid pixels of the batch together; the variance is the
    unbiased one. The original adds half of a gradient loss. That loss slices the batch and channel axes instead of
    height and width, and so is exactly 0 for its two images a device. It is left out here.

    Args:
        prediction, depth: of equal shape, in the same unit; predictions are at least 0.
        valid: bool, of that shape; None: where `depth` is above 0.
        warmup: the form of the first 100 steps, `sqrt(0.15 mean(g)^2)`.

    Returns:
        A scalar, float32; 0 if fewer than two pixels are valid.
    """
    valid = depth > 0 if valid is None else valid
    if int(valid.sum()) < 2:
        return prediction.float().sum() * 0
    g = torch.log(prediction[valid].float() + LOG_EPSILON) - torch.log(depth[valid].float() + LOG_EPSILON)
    mean = MEAN_WEIGHT * g.mean().square()
    return torch.sqrt(mean if warmup else g.var() + mean)


def depth_metrics(prediction: Tensor, depth: Tensor) -> dict[str, float]:
    """The metrics of the pixels of one image.

    Args:
        prediction, depth: (n,), above 0, in the same unit.

    Returns:
        `rmse` (in that unit), `abs_rel` (mean of |p - d| / d), `log10` (mean of |log10 p - log10 d|), and `delta1`,
        `delta2`, `delta3`: the shares, in [0, 1], of pixels whose ratio max(p / d, d / p) is below 1.25, 1.25^2,
        1.25^3.
    """
    prediction, depth = prediction.double(), depth.double()
    ratio = torch.maximum(prediction / depth, depth / prediction)
    metrics = {
        "rmse": (prediction - depth).square().mean().sqrt(),
        "abs_rel": ((prediction - depth).abs() / depth).mean(),
        "log10": (prediction.log10() - depth.log10()).abs().mean(),
    }
    metrics |= {f"delta{power}": (ratio < 1.25**power).double().mean() for power in (1, 2, 3)}
    return {name: float(value) for name, value in metrics.items()}
