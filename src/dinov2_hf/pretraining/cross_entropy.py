"""
Cross-entropy of a student's logits with a teacher's targets, with its gradient, chunk by chunk.

Two buffers of `(rows, K)` are held for each chunk, targets and logits. Under autocast they are half precision, like
the products that logits come from. Sums and exponentials are float32 whatever the buffers are. The rounding of the
buffers loses a fiftieth of what the rounding of the logits has lost before.

Shapes: `n` rows (crops or patches), `d` bottleneck size, `K` prototypes.
"""

from collections.abc import Callable
from math import gcd

import torch

from .logit_chunks import LogitChunks, log_sum_exp, softmax_in_place


RowTargets = Callable[[slice], torch.Tensor]


def weighted_cross_entropy(
    student: LogitChunks, targets: RowTargets, row_weights: torch.Tensor, temperature: float
) -> torch.Tensor:
    """
    `-sum_n row_weights_n * sum_k targets_nk * log_softmax(logits_n / temperature)_k`. Value and gradient do not depend
    on the chunks. No gradient flows to targets and weights.

    Args:
        student: the factors of the student's logits, `n` rows.
        targets: the teacher's targets `(rows, K)` for some of these rows, each summing to 1.
        row_weights: `(n,)`.
        temperature: of the student, above 0.
    """
    factors = student.bottleneck, student.prototypes
    return _CrossEntropy.apply(*factors, targets, row_weights, temperature, student.chunk_size)


class _CrossEntropy(torch.autograd.Function):
    """
    Computes the gradient of a chunk while its logits are in memory, so that the backward pass does not compute them
    again.

    Its results are accumulated over the chunks in float32; the products themselves are in the dtype of the factors.
    The weight of a row, which may be too small for half precision, is multiplied last.
    """

    @staticmethod
    def forward(ctx, bottleneck, prototypes, targets, row_weights, temperature, chunk_size):
        student = LogitChunks(bottleneck.detach(), prototypes.detach(), chunk_size)
        loss = torch.zeros((), device=bottleneck.device)
        needs_gradient = any(ctx.needs_input_grad[:2])
        if needs_gradient:
            bottleneck_gradient = torch.empty_like(bottleneck, dtype=torch.float32)
            prototype_gradient = None if len(student) else torch.zeros_like(prototypes, dtype=torch.float32)
        with torch.autocast(bottleneck.device.type, enabled=False):
            for rows in student.chunks():
                weights, target = row_weights[rows].float(), targets(rows)
                logits = student.rows(rows, temperature)
                target = target.to(logits.dtype)
                agreement, largest = _dot(logits, target), logits.amax(dim=-1)
                probabilities = softmax_in_place(logits)
                loss += weights @ (log_sum_exp(largest, probabilities, dim=-1) - agreement)
                if not needs_gradient:
                    continue
                gradient = probabilities.sub_(target).to(bottleneck.dtype)
                del target, logits, probabilities  # before the products are made
                weights = weights[:, None] / temperature
                torch.mul(gradient @ student.prototypes, weights, out=bottleneck_gradient[rows])
                weighted = (student.bottleneck[rows] * weights).to(bottleneck.dtype)
                product = gradient.T @ weighted
                del gradient
                prototype_gradient = (
                    product.float() if prototype_gradient is None else prototype_gradient.add_(product)
                )
                del product
        if needs_gradient:
            ctx.save_for_backward(bottleneck_gradient, prototype_gradient)
            ctx.dtypes = bottleneck.dtype, prototypes.dtype
        return loss

    @staticmethod
    def backward(ctx, gradient):
        gradients = []
        for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            gradients.append(torch.mul(saved, gradient, out=torch.empty_like(saved, dtype=dtype)))
        return *gradients, None, None, None, None


def _dot(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Dot products `(n,)` of the rows of two `(n, K)`, in float32. Half-precision products would be rounded."""
    width = gcd(rows.shape[-1], 1024)
    parts = torch.bmm(rows.reshape(-1, 1, width), others.reshape(-1, width, 1))
    return parts.view(len(rows), -1).sum(dim=-1, dtype=torch.float32)
