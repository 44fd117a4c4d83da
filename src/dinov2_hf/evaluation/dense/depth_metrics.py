"""How far a predicted depth is from the truth (Eigen et al. 2014)."""

import torch
from torch import Tensor


def depth_metrics(prediction: Tensor, depth: Tensor) -> dict[str, float]:
    """Of the pixels of one image.

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
