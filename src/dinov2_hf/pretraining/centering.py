"""
Teacher targets from teacher logits (paper, section 4): Sinkhorn-Knopp, softmax with a running centre, or neither.

Shapes: `n` rows on this rank (crops or patches), `K` prototypes. The modules turn logits `(n, K)`, which are not held
at once where they are many, into a function of some of the rows to their targets `(rows, K)`: probabilities, float32,
each row summing to 1. Where rows depend on one another, they do so over all ranks. Rows that only fill a batch up to
a fixed number are left out of what others depend on; what is said of them means nothing.
"""

from collections.abc import Callable, Iterable, Iterator
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
    logits: torch.Tensor,
    temperature: float | torch.Tensor,
    num_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    is_counted: torch.Tensor | None = None,
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
        is_counted: `(n,)` booleans; the result of a row that does not count is 0. `None`: all rows count.
    """
    scores = logits.float() / temperature
    counted_scores = _without_padding(scores.split(ROWS_AT_ONCE), is_counted)
    scores -= _log_prototype_mass(counted_scores, scores.new_full(scores.shape[1:], -torch.inf), group)
    kernel = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
    counted = 1 if is_counted is None else is_counted.float()
    row_scale, prototype_scale = counted / kernel.sum(dim=1), kernel.new_ones(kernel.shape[1])
    for _ in range(num_iterations - 1):
        prototype_scale = 1 / _all_reduce(row_scale @ kernel, dist.ReduceOp.SUM, group)
        row_scale = counted / (kernel @ prototype_scale)
    targets = kernel.mul_(prototype_scale).mul_(row_scale[:, None])
    return targets if is_counted is None else targets.masked_fill_(~is_counted[:, None], 0)


@torch.no_grad()
def sinkhorn_log_prototype_scale(
    logits: LogitChunks,
    temperature: float | torch.Tensor,
    num_iterations: int = 3,
    group: dist.ProcessGroup | None = None,
    is_counted: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What `sinkhorn_knopp` is a softmax with, from logits that are never held at once: `log u`, `(K,)`, by which its
    result is `softmax(logits / temperature + log u)`.

    Each iteration goes over the chunks once: the new scale of a chunk's rows and what these rows then give to the
    prototypes need the same numbers.
    """
    scores = (logits.rows(rows, temperature).float() for rows in logits.chunks())
    empty = logits.prototypes.new_full((len(logits.prototypes),), -torch.inf, dtype=torch.float32)
    log_scale = -_log_prototype_mass(_without_padding(scores, is_counted), empty, group)
    for _ in range(num_iterations - 1):
        mass = torch.zeros_like(log_scale)
        for rows in logits.chunks():
            shares = torch.softmax(logits.rows(rows, temperature) + log_scale, dim=-1)
            mass += shares.sum(dim=0) if is_counted is None else is_counted[rows].to(shares.dtype) @ shares
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


def _without_padding(chunks: Iterable[torch.Tensor], is_counted: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """Scores `(rows, K)` in chunks, of which rows that do not count become minus infinity."""
    start = 0
    for scores in chunks:
        stop = start + len(scores)
        yield scores if is_counted is None else scores.masked_fill(~is_counted[start:stop, None], -torch.inf)
        start = stop


class SinkhornKnoppCentering(nn.Module):
    """Targets by `sinkhorn_knopp` over all rows given, of all ranks of `group`; has no state."""

    def forward(
        self,
        logits: LogitChunks,
        temperature: float | torch.Tensor,
        group: dist.ProcessGroup | None = None,
        is_counted: torch.Tensor | None = None,
    ) -> RowTargets:
        """Logits to their targets; what is not held at once is made again for each of the iterations."""
        options = {"group": group, "is_counted": is_counted}
        with torch.autocast(logits.device.type, enabled=False):
            if logits.fit_at_once:
                targets = sinkhorn_knopp(logits.rows(slice(None)), temperature, **options)
                return lambda rows: targets[rows]  # ZeRO-3 looks for tensors in what comes out; a method has no `vars`
            log_scale = sinkhorn_log_prototype_scale(logits, temperature, **options)
            if is_counted is not None:  # of no row at all it is no number
                log_scale = torch.where(log_scale.isfinite(), log_scale, 0)
            return _softmax_of_rows(logits, temperature, log_scale)


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
    def forward(
        self,
        logits: LogitChunks,
        temperature: float | torch.Tensor,
        group: dist.ProcessGroup | None = None,
        is_counted: torch.Tensor | None = None,
    ) -> RowTargets:
        """Logits to their targets; the centre is that of the ranks of `group`."""
        targets = _softmax_of_rows(logits, temperature, -self.center / temperature)
        if self.training:
            with torch.autocast(logits.device.type, enabled=False):
                rows = logits.bottleneck.float()
                number = rows.new_full((), len(rows))  # no copy, for which the host would wait
                if is_counted is not None:
                    rows, number = rows * is_counted[:, None], is_counted.sum()
                # A mean of products is the product of the mean; that of no rows is 0.
                mean = rows.sum(dim=0) / number.clamp(min=1) @ logits.prototypes.float().T
            # The mean of rank means, as the original has it for patches; crops have equal counts on all ranks. A rank
            # without rows, none of whose patches are masked, says nothing of the mean.
            counted = _all_reduce(torch.cat([mean, (number > 0).to(mean.dtype)[None]]), dist.ReduceOp.SUM, group)
            mean = counted[:-1] / counted[-1]
            # A batch that is not finite, or that has no rows on any rank, is lost, but not the centre with it.
            self.center.lerp_(torch.where(mean.isfinite(), mean, self.center), 1 - self.momentum)
        return targets


class NoCentering(nn.Module):
    """
    Targets `softmax(logits / temperature)`. Nothing keeps all images from choosing the same prototype, so training
    collapses (DINO paper, section 5.3): for ablations, and to see what a collapse looks like.
    """

    def forward(self, logits: LogitChunks, temperature: float | torch.Tensor, *_) -> RowTargets:
        """Logits to their targets; every row is by itself."""
        return _softmax_of_rows(logits, temperature, 0.0)


def _softmax_of_rows(logits: LogitChunks, temperature: float, bias: torch.Tensor | float) -> RowTargets:
    def targets(rows: slice) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            return torch.softmax(logits.rows(rows, temperature) + bias, dim=-1, dtype=torch.float32)

    return targets


@dataclass(frozen=True)
class Centering:
    """
    How logits become targets in one step.

    Args:
        cls, patches: the modules for CLS tokens and for patches.
        temperature: of the teacher, above 0; a scalar tensor where it must not be compiled in.
        chunk_size: rows of which logits are held at once.
        group: the ranks whose rows depend on one another; `None` is all.
        is_counted: `(M,)` booleans, which of the patches are no padding; `None`: all.
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
        numbers = config.num_prototypes, config.num_patch_prototypes
        return tuple(SoftmaxCentering(number, config.center_momentum) for number in numbers)
    kind = SinkhornKnoppCentering if config.centering == "sinkhorn_knopp" else NoCentering
    return kind(), kind()
