"""The gated activation of SwiGLU, which saves little for its backward pass."""

import torch
from torch import nn


class _SwiGLU(torch.autograd.Function):
    """
    `silu(a) * gate` for concatenated `(a, gate)`. Instead of these two, it saves the factors of the gradient:
    `silu(a)` for the gradient of the gate, `gate * silu'(a)` for the gradient of `a`.
    """

    @staticmethod
    def forward(ctx, both):
        activated, gate = both.chunk(2, dim=-1)
        factors = torch.empty_like(both)
        of_activated, of_gate = factors.chunk(2, dim=-1)
        torch.ops.aten.silu.out(activated, out=of_gate)
        torch.ops.aten.silu_backward.grad_input(gate, activated, grad_input=of_activated)
        ctx.save_for_backward(factors)
        return of_gate * gate

    @staticmethod
    def backward(ctx, gradient):
        (factors,) = ctx.saved_tensors
        return (factors.unflatten(-1, (2, -1)) * gradient.unsqueeze(-2)).flatten(-2)


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """`silu(a) * gate`, `(..., d)`, for `both` `(..., 2 * d)`, which is `a` and `gate` concatenated."""
    if torch.is_grad_enabled() and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return _SwiGLU.apply(both)
    activated, gate = both.chunk(2, dim=-1)
    return nn.functional.silu(activated) * gate
