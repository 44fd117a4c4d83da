"""
Teacher targets from teacher logits (paper, section 4): Sinkhorn-Knopp, softmax with a running centre, or neither.

Shapes: `n` rows on this rank (crops or patches), `K` prototypes. The modules turn logits `(n, K)`, which are not held
at once where they are many, into a function of some of the rows to their targets `(rows, K)`: probabilities, float32,
each row summing to 1. Where rows depend on one another, they do so over all ranks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .logit_chunks import LogitChunks


RowTargets = Callable[[slice], torch.Tensor]
ROWS_AT_ONCE = 256  # of a sum over rows, so that its memory is small beside that of all


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

    The first step over prototypes is made of logarithms: `exp` of logits whose rows lie more than 88 temperatures
    apart does not fit into float32 together, whatever is taken away from them. After it, and after the step over rows,
    each prototype has at least `1 / (rows * K)`. From there only the two scaling vectors are iterated, `u` over
    prototypes and `v` over rows, so that each half step is a matrix-vector product and the `(n, K)` matrix is written
    once. Row and prototype counts cancel and are not needed.

    Args:
        logits: `(n, K)`; `n` may differ between ranks, and may be 0.
        temperature: of the teacher, above 0.
        num_iterations: of the row-then-column scaling, at least 1; 3 in the paper.
        group: the ranks whose rows are balanced together; `None` is all.
    """
    scores = logits.float() / temperature
    scores -= _log_prototype_mass(scores.split(ROWS_AT_ONCE), scores.new_full(scores.shape[1:], -torch.inf), group)
    kernel = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
    row_scale, prototype_scale = 1 / kernel.sum(dim=1), kernel.new_ones(kernel.shape[1])
    for _ in range(num_iterations - 1):
        prototype_scale = 1 / _all_reduce(row_scale @ kernel, dist.ReduceOp.SUM, group)
        row_scale = 1 / (kernel @ prototype_scale)
    return kernel.mul_(prototype_scale).mul_(row_scale[:, None])


@torch.no_grad()
def sinkhorn_log_prototype_scale(
    logits: LogitChunks, temperature: float, num_iterations: int = 3, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """
    What `sinkhorn_knopp` is a softmax with, from logits that are never held at once: `log u`, `(K,)`, by which its
    result is `softmax(logits / temperature + log u)`.

    Each iteration goes over the chunks once: the new scale of a chunk's rows and what these rows then give to the
    prototypes need the same numbers.
    """
    scores = (logits.rows(rows, temperature).float() for rows in logits.chunks())
    empty = logits.prototypes.new_full((len(logits.prototypes),), -torch.inf, dtype=torch.float32)
    log_scale = -_log_prototype_mass(scores, empty, group)
    for _ in range(num_iterations - 1):
        mass = torch.zeros_like(log_scale)
        for rows in logits.chunks():
            mass += torch.softmax(logits.rows(rows, temperature) + log_scale, dim=-1).sum(dim=0)
        log_scale -= _all_reduce(mass, dist.ReduceOp.SUM, group).log_()
    return log_scale


def _log_prototype_mass(
    chunks: Iterable[torch.Tensor], log_mass: torch.Tensor, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """
    Of scores `(rows, K)` in chunks the logarithm of the sum of `exp(scores)` over the rows of all ranks, `(K,)`.

    Args:
        log_mass: that of no rows, `(K,)`, which is minus infinity.
    """
    for scores in chunks:
        log_mass = torch.logaddexp(log_mass, scores.logsumexp(dim=0))
    largest = _all_reduce(log_mass.clone(), dist.ReduceOp.MAX, group)
    return largest + _all_reduce((log_mass - largest).exp_(), dist.ReduceOp.SUM, group).log_()


class SinkhornKnoppCentering(nn.Module):
    """Targets by `sinkhorn_knopp` over all rows given, of all ranks of `group`; has no state."""

    def forward(self, logits: LogitChunks, temperature: float, group: dist.ProcessGroup | None = None) -> RowTargets:
        """Logits to their targets; what is not held at once is made again for each of the iterations."""
        with torch.autocast(logits.device.type, enabled=False):
            if logits.fit_at_once:
                targets = sinkhorn_knopp(logits.rows(slice(None)), temperature, group=group)
                return lambda rows: targets[rows]  # ZeRO-3 looks for tensors in what comes out; a method has no `vars`
            return _softmax_of_rows(
                logits, temperature, sinkhorn_log_prototype_scale(logits, temperature, group=group)
            )


class SoftmaxCentering(nn.Module):
    """
    Targets `softmax((logits - center) / temperature)`; the centre is a running mean of the logits of earlier calls.

    The centre moves in training mode only, so a step uses the statistics of the steps before it. `center` `(K,)` is a
    float32 buffer, saved with the weights.
    """

    def __init__(self, num_prototypes: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(self, logits: LogitChunks, temperature: float, group: dist.ProcessGroup | None = None) -> RowTargets:
        """Logits to their targets; the centre is that of the ranks of `group`."""
        targets = _softmax_of_rows(logits, temperature, -self.center / temperature)
        if self.training:
            with torch.autocast(logits.device.type, enabled=False):
                rows = logits.bottleneck.float()
                # A mean of products is the product of the mean; that of no rows is 0.
                mean = rows.sum(dim=0) / max(len(rows), 1) @ logits.prototypes.float().T
            # The mean of rank means, as the original has it for patches; crops have equal counts on all ranks. A rank
            # without rows, none of whose patches are masked, says nothing of the mean.
            counted = _all_reduce(torch.cat([mean, mean.new_full((1,), len(rows) > 0)]), dist.ReduceOp.SUM, group)
            mean = counted[:-1] / counted[-1]
            # A batch that is not finite, or that has no rows on any rank, is lost, but not the centre with it.
            self.center.lerp_(torch.where(mean.isfinite(), mean, self.center), 1 - self.momentum)
        return targets


class NoCentering(nn.Module):
    """
    Targets `softmax(logits / temperature)`. Nothing keeps all images from choosing the same prototype, so training
    collapses (DINO paper, section 5.3): for ablations, and to see what a collapse looks like.
    """

    def forward(self, logits: LogitChunks, temperature: float, group: dist.ProcessGroup | None = None) -> RowTargets:
        """Logits to their targets; every row is by itself."""
        return _softmax_of_rows(logits, temperature, 0.0)


def _softmax_of_rows(logits: LogitChunks, temperature: float, bias: torch.Tensor | float) -> RowTargets:
    @torch.no_grad()
    def targets(rows: slice) -> torch.Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return torch.softmax(logits.rows(rows, temperature) + bias, dim=-1, dtype=torch.float32)

    return targets


@dataclass(frozen=True)
class Centering:
    """
    How logits become targets in one step.

    Args:
        cls, patches: the modules for CLS tokens and for patches.
        temperature: of the teacher, above 0.
        chunk_size: rows of which logits are held at once.
        group: the ranks whose rows depend on one another; `None` is all.
    """

    cls: nn.Module
    patches: nn.Module
    temperature: float
    chunk_size: int
    group: dist.ProcessGroup | None = None


def build_centerings(config: DINOv2PreTrainingConfig) -> tuple[nn.Module, nn.Module]:
    """The modules of `config.centering`, for CLS tokens and for patches."""
    if config.centering == "softmax":
        numbers = config.num_prototypes, config.num_patch_prototypes
        return tuple(SoftmaxCentering(number, config.center_momentum) for number in numbers)
    kind = SinkhornKnoppCentering if config.centering == "sinkhorn_knopp" else NoCentering
    return kind(), kind()
