"""
Logits of more rows than memory can hold at once, and the patch-level loss over them.

Distillation compares all patches of both global crops: 64 images of 224 pixels are 32,768 rows, which at 131,072
prototypes are 17 GB for the teacher and as many for the student. Their factors, rows before the prototypes and the
prototypes, are 0.2 GB; from these a chunk of logits is made whenever it is needed, and forgotten.

Shapes: `n` rows (patches), `d` bottleneck size, `K` prototypes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LogitChunks:
    """
    Args:
        bottleneck: `(n, d)`.
        prototypes: `(K, d)`.
        chunk_size: rows of which logits are made at once.
    """

    bottleneck: torch.Tensor
    prototypes: torch.Tensor
    chunk_size: int

    def __len__(self) -> int:
        return len(self.bottleneck)

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.bottleneck.device

    @property
    def fit_at_once(self) -> bool:
        """Whether all rows are one chunk."""
        return len(self) <= self.chunk_size

    def chunks(self) -> Iterator[slice]:
        """The rows of each chunk."""
        return (slice(start, start + self.chunk_size) for start in range(0, len(self), self.chunk_size))

    def rows(self, rows: slice, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Logits over `temperature`, `(rows, K)`, in the dtype of the factors; over a scalar tensor in float32."""
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(temperature, torch.Tensor):  # of a compiled step, which fuses the division
                return (self.bottleneck[rows] @ self.prototypes.T).float() / temperature
            # Scaled by the product itself, which is rounded once; `beta=0` ignores the first argument.
            nothing = self.prototypes.new_empty(())
            return torch.addmm(nothing, self.bottleneck[rows], self.prototypes.T, beta=0, alpha=1 / temperature)


def ibot_loss(
    student: LogitChunks,
    targets: Callable[[slice], torch.Tensor],
    row_weights: torch.Tensor,
    num_crops: int,
    student_temperature: float,
) -> torch.Tensor:
    """
    Patch-level loss (paper, section 4): cross-entropy averaged over the patches of a crop that count, then summed over
    crops and divided by the number of all crops. Logits are never held at once; number and gradient do not depend on
    the chunks.

    Args:
        student: the factors of the student's logits, `n` rows.
        targets: the teacher's targets `(rows, K)` for some of these rows, probabilities in float32.
        row_weights: `(n,)`; one over the rows that count of that crop.
        num_crops: all global crops of the batch.
        student_temperature: above 0.
    """
    loss = _IBOTLoss.apply(
        student.bottleneck, student.prototypes, targets, row_weights, student_temperature, student.chunk_size
    )
    return loss / num_crops


class _IBOTLoss(torch.autograd.Function):
    """
    Makes the gradient of a chunk while its logits are there, so that the backward pass does not make them again.

    What leaves it is accumulated over the chunks in float32; the products themselves are in the dtype of the factors.
    The weight of a row, which may be small for half precision, comes last.
    """

    @staticmethod
    def forward(ctx, bottleneck, prototypes, targets, row_weights, temperature, chunk_size):
        student = LogitChunks(bottleneck.detach(), prototypes.detach(), chunk_size)
        loss = torch.zeros((), device=bottleneck.device)
        needs_gradient = any(ctx.needs_input_grad[:2])
        if needs_gradient:
            bottleneck_gradient = torch.empty_like(bottleneck, dtype=torch.float32)
            prototype_gradient = torch.zeros_like(prototypes, dtype=torch.float32)
        with torch.autocast(bottleneck.device.type, enabled=False):
            for rows in student.chunks():
                weights, target = row_weights[rows].float(), targets(rows)
                log_probabilities = student.rows(rows, temperature).float().log_softmax(dim=-1)
                agreement = torch.bmm(target.unsqueeze(1), log_probabilities.unsqueeze(2)).flatten()
                loss -= weights @ agreement
                if not needs_gradient:
                    continue
                weights = weights[:, None] / temperature
                gradient = torch.empty_like(target, dtype=bottleneck.dtype)
                torch.sub(log_probabilities.exp_(), target, out=gradient)
                torch.mul(gradient @ student.prototypes, weights, out=bottleneck_gradient[rows])
                weighted = (student.bottleneck[rows] * weights).to(bottleneck.dtype)
                prototype_gradient += gradient.T @ weighted
                del target, log_probabilities, gradient  # before those of the next rows are made
        if needs_gradient:
            ctx.save_for_backward(bottleneck_gradient, prototype_gradient)
            ctx.dtypes = bottleneck.dtype, prototypes.dtype
        return loss

    @staticmethod
    def backward(ctx, gradient):
        bottleneck_gradient, prototype_gradient = (
            (saved * gradient).to(dtype) for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return bottleneck_gradient, prototype_gradient, None, None, None, None
