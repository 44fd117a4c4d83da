"""
Teacher targets from teacher logits (paper, section 4): Sinkhorn-Knopp, softmax with a running centre, or neither.

Shapes: `n` rows on this rank (crops or patches), `K` prototypes. The modules take logits `(n, K)`, which are not all
held in memory at once. They return a function from some of the rows to their targets `(rows, K)`: probabilities in the
dtype of the logits, where each row sums to 1. If rows depend on one another, they do so over all ranks. Padding rows,
which only fill a batch up to a fixed number, do not influence other rows, and their own targets are meaningless.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .cross_entropy import RowTargets
from .logit_chunks import LogitChunks, log_sum_exp, softmax_in_place


def _all_reduce(
    tensor: torch.Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor, op=op, group=group)
    return tensor


@torch.no_grad()
def sinkhorn_knopp(
    logits: LogitChunks,
    temperature: float | torch.Tensor,
    num_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    is_counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Sinkhorn-Knopp: scale `exp(logits / temperature)` so that prototypes share the rows of all ranks evenly and every
    row sums to 1. The counts of rows and prototypes cancel and are not needed.

    Each step over rows is a softmax, so only the logarithm of the scale of prototypes is kept. Each iteration computes
    every chunk of logits once, because the sums over prototypes need the same numbers as the scale of the rows.
    Nothing overflows, however different the rows are.

    Args:
        logits: of `n` rows; `n` may differ between ranks, and may be 0.
        temperature: of the teacher, above 0.
        num_iterations: iterations of the row-then-column scaling, at least 1; 3 in the paper.
        group: the ranks whose rows are balanced together; `None` means all ranks.
        is_counted: `(n,)` booleans, the rows that are balanced; `None` means all rows.

    Returns:
        `log u`, `(K,)`, float32: the targets are `softmax(logits / temperature + log u)`.
    """
    log_mass = logits.prototypes.new_full((len(logits.prototypes),), -torch.inf, dtype=torch.float32)
    for rows in logits.chunks():
        scores = logits.rows(rows, temperature)
        if is_counted is not None:  # the difference of two infinities is NaN
            scores = scores.masked_fill_(~is_counted[rows, None], torch.finfo(scores.dtype).min / 2)
        log_mass = torch.logaddexp(log_mass, log_sum_exp(scores.amax(dim=0), torch.softmax(scores, dim=0), dim=0))
    largest = _all_reduce(log_mass.clone(), dist.ReduceOp.MAX, group)
    log_scale = -largest - _all_reduce((log_mass - largest).exp_(), dist.ReduceOp.SUM, group).log_()
    for _ in range(num_iterations - 1):
        mass, scaled = torch.zeros_like(log_scale), _softmax_of_rows(logits, temperature, temperature * log_scale)
        for rows in logits.chunks():
            shares = scaled(rows)
            if is_counted is not None:
                shares = shares.mul_(is_counted[rows, None])
            mass += shares.sum(dim=0, dtype=torch.float32)
        log_scale -= _all_reduce(mass, dist.ReduceOp.SUM, group).log_()
    if is_counted is not None:  # NaN if there is no row at all
        log_scale = torch.where(log_scale.isfinite(), log_scale, 0)
    return log_scale


class SinkhornKnoppCentering(nn.Module):
    """Targets by `sinkhorn_knopp` over all given rows, of all ranks of `group`; has no state."""

    def forward(
        self,
        logits: LogitChunks,
        temperature: float | torch.Tensor,
        group: dist.ProcessGroup | None = None,
        is_counted: torch.Tensor | None = None,
    ) -> RowTargets:
        """Logits to their targets."""
        with torch.autocast(logits.device.type, enabled=False):
            log_scale = sinkhorn_knopp(logits, temperature, group=group, is_counted=is_counted)
            return _softmax_of_rows(logits, temperature, temperature * log_scale)


class SoftmaxCentering(nn.Module):
    """
    Targets `softmax((logits - center) / temperature)`, where the centre is a running mean of the logits of earlier
    calls.

    The centre is updated only in training mode, after its use, so a step uses the statistics of the steps before it.
    `center` `(K,)` is a float32 buffer, saved with the weights.
    """

    center: torch.Tensor

    def __init__(self, num_prototypes: int, momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(
        self,
        logits: LogitChunks,
        temperature: float | torch.Tensor,
        group: dist.ProcessGroup | None = None,
        is_counted: torch.Tensor | None = None,
    ) -> RowTargets:
        """Logits to their targets; the centre is that of the ranks of `group`."""
        targets = _softmax_of_rows(logits, temperature, -self.center)
        if self.training:
            with torch.autocast(logits.device.type, enabled=False):
                rows = logits.bottleneck.float()
                number = rows.new_full((), len(rows))  # no copy from the host, which would have to wait
                if is_counted is not None:
                    rows, number = rows * is_counted[:, None], is_counted.sum()
                # The mean of the products is the product with the mean; the mean of no rows is taken as 0.
                mean = rows.sum(dim=0) / number.clamp(min=1) @ logits.prototypes.float().T
            # The mean of the means of the ranks, as in the original for patches. Crops have equal counts on all ranks.
            # A rank without rows, because none of its patches is masked, adds nothing to the mean.
            counted = _all_reduce(torch.cat([mean, (number > 0).to(mean.dtype)[None]]), dist.ReduceOp.SUM, group)
            mean = counted[:-1] / counted[-1]
            # A batch that is not finite, or has no rows on any rank, does not change the centre.
            self.center.lerp_(torch.where(mean.isfinite(), mean, self.center), 1 - self.momentum)
        return targets


class NoCentering(nn.Module):
    """
    Targets `softmax(logits / temperature)`. Nothing prevents all images from choosing the same prototype, so training
    collapses (DINO paper, section 5.3). Use it for ablations, and to see what a collapse looks like.
    """

    def forward(self, logits: LogitChunks, temperature: float | torch.Tensor, *_) -> RowTargets:
        """Logits to their targets; rows are independent."""
        return _softmax_of_rows(logits, temperature)


def _softmax_of_rows(
    logits: LogitChunks, temperature: float | torch.Tensor, bias: torch.Tensor | None = None
) -> RowTargets:
    """`softmax((logits + bias) / temperature)`."""
    with torch.no_grad():
        biased = logits if bias is None else logits.plus(bias)

    @torch.no_grad()
    def targets(rows: slice) -> torch.Tensor:
        return softmax_in_place(biased.rows(rows, temperature))

    return targets


@dataclass(frozen=True)
class Centering:
    """
    How logits become targets in one step.

    Args:
        cls, patches: the modules for CLS tokens and for patches.
        temperature: temperature of the teacher, above 0; a scalar tensor if it must not become a constant of compiled
            code.
        chunk_size: rows whose logits are held at once.
        group: the ranks whose rows depend on one another; `None` means all ranks.
        is_counted: `(M,)` booleans, the patches that are not padding; `None` means all patches.
    """

    cls: nn.Module
    patches: nn.Module
    temperature: float | torch.Tensor
    chunk_size: int
    group: dist.ProcessGroup | None = None
    is_counted: torch.Tensor | None = None


def build_centerings(config: DINOv2PreTrainingConfig) -> tuple[nn.Module, nn.Module]:
    """The modules of `config.centering`, for CLS tokens and for patches."""
    if config.centering == "softmax":
        momentum = config.center_momentum
        return SoftmaxCentering(config.num_prototypes, momentum), SoftmaxCentering(
            config.num_patch_prototypes, momentum
        )
    kind = SinkhornKnoppCentering if config.centering == "sinkhorn_knopp" else NoCentering
    return kind(), kind()
