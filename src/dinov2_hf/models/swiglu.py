"""The gated activation of SwiGLU, with little kept for its backward pass."""

import torch
from torch import nn


class _SwiGLU(torch.autograd.Function):
    """`silu(a) * gate` of `(a, gate)` side by side; keeps these two, and writes both gradients into one tensor."""

    @staticmethod
    def forward(ctx, both):
        ctx.save_for_backward(both)
        activated, gate = both.chunk(2, dim=-1)
        return nn.functional.silu(activated).mul_(gate)

    @staticmethod
    def backward(ctx, gradient):
        (both,) = ctx.saved_tensors
        activated, gate = both.chunk(2, dim=-1)
        out = torch.empty_like(both)
        of_activated, of_gate = out.chunk(2, dim=-1)
        torch.mul(gradient, nn.functional.silu(activated), out=of_gate)
        torch.ops.aten.silu_backward.grad_input(gradient * gate, activated, grad_input=of_activated)
        return out


def swiglu(both: torch.Tensor) -> torch.Tensor:
    """`silu(a) * gate` for `both` `(..., 2 * d)`, which is `a` and `gate` side by side; `(..., d)`."""
    if torch.is_grad_enabled() and not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return _SwiGLU.apply(both)
    activated, gate = both.chunk(2, dim=-1)
    return nn.functional.silu(activated) * gate
