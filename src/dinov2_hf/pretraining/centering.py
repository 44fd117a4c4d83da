"""
Teacher targets from teacher logits (paper, section 4): Sinkhorn-Knopp, softmax with a running centre, or neither.

Shapes: `n` rows on this rank (crops or masked patches), `K` prototypes. The modules turn logits `(..., K)` into
probabilities of the same shape, float32, each row summing to 1. Where rows depend on one another, they do so over all
ranks.
"""

import torch
import torch.distributed as dist
from torch import nn


def _all_reduce(tensor: torch.Tensor, op: dist.ReduceOp) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=op)
    return tensor


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float, num_iterations: int = 3) -> torch.Tensor:
    """
    Sinkhorn-Knopp: scale `exp(logits / temperature)` so that prototypes share the rows of all ranks evenly and every
    row sums to 1.

    Only the two scaling vectors are iterated, `u` over prototypes and `v` over rows, so that each half step is a
    matrix-vector product and the `(n, K)` matrix is written once. Each row is shifted by its own maximum before the
    exponential and `v` starts as what that shift took away: the same matrix, without the overflow that the plain
    exponential has beyond `logits / temperature` = 88. Row and prototype counts cancel and are not needed.

    Args:
        logits: `(n, K)`; `n` may differ between ranks, and may be 0.
        temperature: of the teacher, above 0.
        num_iterations: of the row-then-column scaling; 3 in the paper.
    """
    scores = logits.float() / temperature
    row_max = scores.amax(dim=1) if len(scores) else scores.new_empty(0)
    global_max = row_max.max() if len(scores) else scores.new_tensor(-torch.inf)
    global_max = _all_reduce(global_max, dist.ReduceOp.MAX)
    kernel = scores.sub_(row_max[:, None]).exp_()
    row_scale = torch.exp(row_max - global_max)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(num_iterations):
        prototype_mass = _all_reduce(row_scale @ kernel, dist.ReduceOp.SUM)
        prototype_scale = 1 / prototype_mass.clamp_min(tiny)
        row_scale = 1 / (kernel @ prototype_scale)
    return kernel.mul_(prototype_scale).mul_(row_scale[:, None])


class SinkhornKnoppCentering(nn.Module):
    """Targets by `sinkhorn_knopp` over all rows given; has no state."""

    def forward(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Logits `(..., K)` to targets `(..., K)`; all leading dimensions are one problem."""
        with torch.autocast(logits.device.type, enabled=False):
            return sinkhorn_knopp(logits.flatten(0, -2), temperature).view(logits.shape)


class SoftmaxCentering(nn.Module):
    """
    Targets `softmax((logits - center) / temperature)`; the centre is a running mean of the logits of earlier calls.

    The centre moves in training mode only, after the targets are made, so a step uses the statistics of the steps
    before it. `center` `(K,)` is a float32 buffer, saved with the weights.
    """

    def __init__(self, num_prototypes: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Logits `(..., K)` to targets `(..., K)`."""
        rows = logits.flatten(0, -2).float()
        targets = torch.softmax((rows - self.center) / temperature, dim=-1)
        if self.training:
            self._update(rows)
        return targets.view(logits.shape)

    def _update(self, rows: torch.Tensor) -> None:
        mean = rows.mean(dim=0) if len(rows) else torch.zeros_like(self.center)
        # The mean of rank means, as the original has it for patches; crops have equal counts on all ranks.
        mean = _all_reduce(mean, dist.ReduceOp.SUM)
        if dist.is_available() and dist.is_initialized():
            mean /= dist.get_world_size()
        # A batch that is not finite is lost, but not the centre with it.
        self.center.lerp_(torch.where(mean.isfinite(), mean, self.center), 1 - self.momentum)


class NoCentering(nn.Module):
    """
    Targets `softmax(logits / temperature)`. Nothing keeps all images from choosing the same prototype, so training
    collapses (DINO paper, section 5.3): for ablations, and to see what a collapse looks like.
    """

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Logits `(..., K)` to targets `(..., K)`."""
        return torch.softmax(logits.float() / temperature, dim=-1)


def build_centering(name: str, num_prototypes: int, center_momentum: float) -> nn.Module:
    """The module for `DINOv2PreTrainingConfig.centering`."""
    if name == "sinkhorn_knopp":
        return SinkhornKnoppCentering()
    if name == "none":
        return NoCentering()
    return SoftmaxCentering(num_prototypes, center_momentum)
