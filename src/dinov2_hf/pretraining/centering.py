"""
Teacher targets from teacher logits (paper, section 4): Sinkhorn-Knopp, softmax with a running centre, or neither.

Shapes: `n` rows on this rank (crops or masked patches), `K` prototypes. The modules turn logits `(..., K)` into
probabilities of the same shape, float32, each row summing to 1. Where rows depend on one another, they do so over all
ranks.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from .logit_chunks import LogitChunks


def _all_reduce(tensor: torch.Tensor, op: dist.ReduceOp, group: dist.ProcessGroup | None = None) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


@torch.no_grad()
def sinkhorn_knopp(
    logits: torch.Tensor, temperature: float, num_iterations: int = 3, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
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
        group: the ranks whose rows are balanced together; `None` is all.
    """
    scores = logits.float() / temperature
    row_max = scores.amax(dim=1) if len(scores) else scores.new_empty(0)
    global_max = row_max.max() if len(scores) else scores.new_tensor(-torch.inf)
    global_max = _all_reduce(global_max, dist.ReduceOp.MAX, group)
    kernel = scores.sub_(row_max[:, None]).exp_()
    row_scale = torch.exp(row_max - global_max)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(num_iterations):
        prototype_mass = _all_reduce(row_scale @ kernel, dist.ReduceOp.SUM, group)
        prototype_scale = 1 / prototype_mass.clamp_min(tiny)
        row_scale = 1 / (kernel @ prototype_scale)
    return kernel.mul_(prototype_scale).mul_(row_scale[:, None])


@torch.no_grad()
def sinkhorn_prototype_scale(
    logits: LogitChunks, temperature: float, num_iterations: int = 3, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """
    The scaling vector over prototypes `(K,)` that `sinkhorn_knopp` ends with, from logits that are never held at once.

    Each iteration goes over the chunks once: the new scale of a chunk's rows and what these rows then give to the
    prototypes need the same kernel. The first pass does not know the largest logit yet, and rescales its sum whenever
    it meets a larger one.
    """
    num_prototypes = len(logits.prototypes)
    mass = logits.prototypes.new_zeros(num_prototypes, dtype=torch.float32)
    largest = torch.full_like(mass[0], -torch.inf)
    for rows in logits.chunks():
        scores = logits.rows(rows).float() / temperature
        new_largest = torch.maximum(largest, scores.max())
        mass = mass * torch.exp(largest - new_largest) + (scores - new_largest).exp_().sum(dim=0)
        largest = new_largest
    over_ranks = _all_reduce(largest.clone(), dist.ReduceOp.MAX, group)
    mass *= torch.where(largest.isinf(), 0, torch.exp(largest - over_ranks))  # infinite where a rank has no rows
    tiny = torch.finfo(torch.float32).tiny
    prototype_scale = 1 / _all_reduce(mass, dist.ReduceOp.SUM, group).clamp_min(tiny)
    for _ in range(num_iterations - 1):
        mass = torch.zeros_like(mass)
        for rows in logits.chunks():
            kernel = _row_kernel(logits.rows(rows), temperature)
            mass += (1 / (kernel @ prototype_scale)) @ kernel
        prototype_scale = 1 / _all_reduce(mass, dist.ReduceOp.SUM, group).clamp_min(tiny)
    return prototype_scale


def _row_kernel(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    scores = logits.float() / temperature
    return scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()


class SinkhornKnoppCentering(nn.Module):
    """Targets by `sinkhorn_knopp` over all rows given; has no state."""

    def forward(
        self, logits: torch.Tensor, temperature: float, group: dist.ProcessGroup | None = None
    ) -> torch.Tensor:
        """Logits `(..., K)` to targets `(..., K)`; all rows, of all ranks of `group`, are one problem."""
        with torch.autocast(logits.device.type, enabled=False):
            return sinkhorn_knopp(logits.flatten(0, -2), temperature, group=group).view(logits.shape)

    def by_chunks(
        self, logits: LogitChunks, temperature: float, group: dist.ProcessGroup | None = None
    ) -> Callable[[slice], torch.Tensor]:
        """The same targets as a function of some of the rows, to `(rows, K)`."""
        if logits.fit_at_once:
            return self(logits.rows(slice(None)), temperature, group).__getitem__
        with torch.autocast(logits.device.type, enabled=False):
            prototype_scale = sinkhorn_prototype_scale(logits, temperature, group=group)

        @torch.no_grad()
        def targets(rows: slice) -> torch.Tensor:
            with torch.autocast(logits.device.type, enabled=False):
                kernel = _row_kernel(logits.rows(rows), temperature)
                row_scale = 1 / (kernel @ prototype_scale)
                return kernel.mul_(prototype_scale).mul_(row_scale[:, None])

        return targets


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
    def forward(
        self, logits: torch.Tensor, temperature: float, group: dist.ProcessGroup | None = None
    ) -> torch.Tensor:
        """Logits `(..., K)` to targets `(..., K)`; the centre is that of the ranks of `group`."""
        rows = logits.flatten(0, -2).float()
        targets = torch.softmax((rows - self.center) / temperature, dim=-1)
        if self.training:
            self._update(rows.mean(dim=0) if len(rows) else torch.zeros_like(self.center), group)
        return targets.view(logits.shape)

    @torch.no_grad()
    def by_chunks(
        self, logits: LogitChunks, temperature: float, group: dist.ProcessGroup | None = None
    ) -> Callable[[slice], torch.Tensor]:
        """The same targets as a function of some of the rows, to `(rows, K)`."""
        center = self.center.clone()  # which moves before the function is called
        if self.training:
            with torch.autocast(logits.device.type, enabled=False):
                # A mean of products is the product of the mean.
                mean = logits.bottleneck.float().mean(dim=0) @ logits.prototypes.float().T
            self._update(mean, group)

        @torch.no_grad()
        def targets(rows: slice) -> torch.Tensor:
            return torch.softmax((logits.rows(rows).float() - center) / temperature, dim=-1)

        return targets

    def _update(self, mean: torch.Tensor, group: dist.ProcessGroup | None) -> None:
        # The mean of rank means, as the original has it for patches; crops have equal counts on all ranks.
        mean = _all_reduce(mean, dist.ReduceOp.SUM, group)
        if dist.is_available() and dist.is_initialized():
            mean /= dist.get_world_size(group)
        # A batch that is not finite is lost, but not the centre with it.
        self.center.lerp_(torch.where(mean.isfinite(), mean, self.center), 1 - self.momentum)


class NoCentering(nn.Module):
    """
    Targets `softmax(logits / temperature)`. Nothing keeps all images from choosing the same prototype, so training
    collapses (DINO paper, section 5.3): for ablations, and to see what a collapse looks like.
    """

    @torch.no_grad()
    def forward(
        self, logits: torch.Tensor, temperature: float, group: dist.ProcessGroup | None = None
    ) -> torch.Tensor:
        """Logits `(..., K)` to targets `(..., K)`; every row is by itself."""
        return torch.softmax(logits.float() / temperature, dim=-1)

    def by_chunks(
        self, logits: LogitChunks, temperature: float, group: dist.ProcessGroup | None = None
    ) -> Callable[[slice], torch.Tensor]:
        """The same targets as a function of some of the rows, to `(rows, K)`."""
        return lambda rows: self(logits.rows(rows), temperature)


def build_centering(name: str, num_prototypes: int, center_momentum: float) -> nn.Module:
    """The module for `DINOv2PreTrainingConfig.centering`."""
    if name == "sinkhorn_knopp":
        return SinkhornKnoppCentering()
    if name == "none":
        return NoCentering()
    return SoftmaxCentering(num_prototypes, center_momentum)
