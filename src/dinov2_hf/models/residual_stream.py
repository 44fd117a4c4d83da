"""
The residual stream in training: what a block takes from it, and what it adds to it, with few passes over memory.

A branch of a block is `x + scale * gain * (inputs @ weight.T + bias)`, with `inputs` made from `norm(x)`. Autograd
would keep its product, copies of it scaled by LayerScale and by stochastic depth, and the input of the norm in
float32, and read each again. Little of it is needed. The gradient of the gain follows from that of the weight before
the gain:

    G = gradient.T @ inputs        d weight = gain * G        d gain = sum_j weight_j * G_j + bias * sum(gradient)

Under autocast the norm keeps its input in the dtype in which its output is multiplied, and its gradient is made in it.
The stream itself is float32 under every precision, and so is everything added to it.

Shapes: `T` tokens of all crops, `T'` of those that a branch keeps, `D` channels of the stream, `d` of the inputs.
"""

from collections.abc import Callable

import torch
from torch import nn

from .crop_packing import CropPacking, KeptCrops


# Where the kernel of a norm's gradient, given half precision, sums those of its weights in it: there it gets float32.
SUM_IN_HALF_PRECISION = {"cpu"}


class ResidualStream:
    """
    The stream before one branch.

    Args:
        hidden_states: `(..., D)`; with `kept` `(1, T, D)`.
        norm: of the branch.
        gain: LayerScale of the branch, `(D,)`.
        kept: crops that the branch sees; `None` is all.
        is_own: `hidden_states` was made by the branch before this one, and nobody else has it.
        is_gradient_own: what `add` returns goes to the branch after this one, and nobody else has it.

    Attributes:
        normed: what the branch sees, `(..., D)`, or of the kept crops `(1, T', D)`.
    """

    def __init__(
        self,
        hidden_states: torch.Tensor,
        norm: nn.LayerNorm,
        gain: torch.Tensor,
        kept: KeptCrops | None,
        is_own: bool,
        is_gradient_own: bool,
    ):
        self.gain, self.kept, self.is_own = gain, kept, is_own
        tokens = None if kept is None else kept.tokens
        self.hidden_states, self.normed = _TakeNormed.apply(
            hidden_states, tokens, norm.weight, norm.bias, norm.eps, is_gradient_own
        )

    def add(self, linear: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """
        The stream after the branch.

        Args:
            linear: the last layer of the branch.
            inputs: of that layer, `(..., d)`: all rows, or those of each resolution.
        """
        in_place = self.is_own and self.kept is not None
        return _AddToStream.apply(
            self.hidden_states, linear.weight, linear.bias, self.gain, self.kept, in_place, *inputs
        )


def last_of_branch(
    linear: nn.Module, inputs: torch.Tensor | tuple[torch.Tensor, ...], stream: ResidualStream | None
) -> torch.Tensor:
    """What the last layer of a branch gives, or the stream with that added. Inputs may be those of each resolution."""
    if stream is not None:
        return stream.add(linear, inputs if isinstance(inputs, tuple) else (inputs,))
    if isinstance(inputs, tuple):
        inputs = torch.cat([part.flatten(0, 1) for part in inputs]).unsqueeze(0)
    return linear(inputs)


def may_fuse(linear: nn.Module) -> bool:
    """
    Whether the weight of `linear` may be used without a call of it: it is trained, no adapter is in its place, nobody
    observes it, and it does not come with the call (as it does under DeepSpeed ZeRO-3).
    """
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return False
    return linear.weight.requires_grad and linear.weight.numel() > 0


def is_eager_training(block: nn.Module, last_layers: tuple[nn.Module, ...]) -> bool:
    """
    Whether gradients are wanted, nothing is traced or compiled (compilers fuse by themselves), and nobody observes or
    replaces a part of this block. The hooks of FSDP2 observe nothing.

    Args:
        last_layers: those of its branches, of which `ResidualStream.add` uses the weights.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(map(may_fuse, last_layers)) and all(
        hasattr(module, "unshard") or not module._forward_hooks for module in block.modules() if module is not block
    )


class _TakeNormed(torch.autograd.Function):
    """
    The stream as it is, and the norm of some or all of its rows. The two gradients meet here: those of the rows are
    added where they belong, in place of zeros that are filled and then added.
    """

    @staticmethod
    def forward(ctx, hidden_states, tokens, weight, bias, eps, is_gradient_own):
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        rows = hidden_states if tokens is None else hidden_states.index_select(1, tokens)
        normed, mean, rstd = torch.native_layer_norm(rows, weight.shape, weight, bias, eps)
        kept_rows = rows if device in SUM_IN_HALF_PRECISION else rows.to(dtype)
        ctx.save_for_backward(kept_rows, mean, rstd, weight, bias, tokens)
        ctx.is_gradient_own = is_gradient_own
        # `data`: not a view, which could not be added to in place.
        return hidden_states.data, normed.to(dtype)

    @staticmethod
    def backward(ctx, gradient, normed_gradient):
        rows, mean, rstd, weight, bias, tokens = ctx.saved_tensors
        normed_gradient = normed_gradient.to(rows.dtype).contiguous()
        rows_gradient, weight_gradient, bias_gradient = torch.ops.aten.native_layer_norm_backward(
            normed_gradient, rows, weight.shape, mean, rstd, weight.to(rows.dtype), bias.to(rows.dtype), [True] * 3
        )
        if tokens is None:
            gradient = gradient + rows_gradient
        else:
            gradient = gradient if ctx.is_gradient_own else gradient.clone()
            gradient.index_add_(1, tokens, rows_gradient.to(gradient.dtype))
        return gradient, None, weight_gradient.to(weight.dtype), bias_gradient.to(bias.dtype), None, None


class _AddToStream(torch.autograd.Function):
    """`hidden_states + scale * gain * linear(inputs)` on the kept rows; see the head of this file."""

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, gain, kept, in_place, *inputs):
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
        ctx.kept, ctx.dtype, ctx.shapes = kept, dtype, [part.shape for part in inputs]
        inputs = tuple(part.flatten(0, -2).to(dtype) for part in inputs)
        ctx.save_for_backward(weight, bias, gain, None if kept is None else kept.tokens, *inputs)
        with torch.autocast(device, enabled=False):
            cast = weight.to(dtype), None if bias is None else bias.to(dtype)
            products = [nn.functional.linear(part, *cast) for part in inputs]
            if kept is None:
                return _add_all(hidden_states, products, gain)
            sizes = kept.packing.lengths
            products = products if len(products) == len(sizes) else products[0].split(sizes)
            source = hidden_states.new_empty(1, sum(sizes), hidden_states.shape[-1])
            for product, scale, rows in zip(products, kept.scales, source[0].split(sizes), strict=True):
                torch.mul(product, gain * scale, out=rows)
            if not in_place:
                return hidden_states.index_add(1, kept.tokens, source)
            ctx.mark_dirty(hidden_states)
            return hidden_states.index_add_(1, kept.tokens, source)

    @staticmethod
    def backward(ctx, gradient):
        weight, bias, gain, tokens, *inputs = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            scaled = gradient.flatten(0, -2)
            if tokens is not None:
                rows, sizes = scaled.index_select(0, tokens), ctx.kept.packing.lengths
                scaled = torch.empty_like(rows, dtype=ctx.dtype)
                for part, scale, out in zip(rows.split(sizes), ctx.kept.scales, scaled.split(sizes), strict=True):
                    torch.mul(part, scale, out=out)
            scaled = scaled.to(ctx.dtype)
            parts = scaled.split([len(part) for part in inputs])
            product = parts[0].T @ inputs[0]
            for part, values in zip(parts[1:], inputs[1:], strict=True):
                product = torch.addmm(product, part.T, values)
            total = scaled.sum(dim=0, dtype=gain.dtype)
            gain_gradient = (weight * product).sum(dim=1, dtype=gain.dtype)
            if bias is not None:
                gain_gradient += bias * total
            if ctx.dtype == torch.float16:  # in which a weight times a LayerScale of 1e-5 is rounded to nothing
                parts, scaled_weight = [(part * gain).to(ctx.dtype) for part in parts], weight.to(ctx.dtype)
            else:
                scaled_weight = (gain[:, None] * weight).to(ctx.dtype)
            return (
                gradient,
                (gain[:, None] * product).to(weight.dtype),
                None if bias is None else (gain * total).to(bias.dtype),
                gain_gradient.to(gain.dtype),
                None,
                None,
                *((part @ scaled_weight).view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)),
            )


def _add_all(hidden_states: torch.Tensor, products: list[torch.Tensor], gain: torch.Tensor) -> torch.Tensor:
    """`hidden_states + gain * products`, all rows."""
    out = hidden_states.new_empty(hidden_states.shape)
    sizes = [len(product) for product in products]
    before, after = (tensor.flatten(0, -2).split(sizes) for tensor in (hidden_states, out))
    for rows, product, out_rows in zip(before, products, after, strict=True):
        if product.dtype == hidden_states.dtype:  # rounded as it is at inference, which `addcmul` does not
            torch.add(rows, torch.mul(product, gain), out=out_rows)
        else:
            torch.addcmul(rows, product, gain, out=out_rows)
    return out


Branch = Callable[[torch.Tensor, CropPacking | None, ResidualStream | None], torch.Tensor]


def add_in_stream(
    hidden_states: torch.Tensor,
    norm: nn.Module,
    branch: Branch,
    layer_scale: nn.Module,
    packing: CropPacking | None,
    kept: KeptCrops | None,
    *,
    is_own: bool,
    is_gradient_own: bool,
) -> torch.Tensor:
    """`hidden_states + scale * layer_scale(branch(norm(rows)))` for the kept rows, in training."""
    stream = ResidualStream(hidden_states, norm, layer_scale.lambda1, kept, is_own, is_gradient_own)
    return branch(stream.normed, packing if kept is None else kept.packing, stream)


def add_plainly(
    hidden_states: torch.Tensor,
    norm: nn.Module,
    branch: Branch,
    layer_scale: nn.Module,
    packing: CropPacking | None,
    kept: KeptCrops | None,
    **_,
) -> torch.Tensor:
    """The same step by step: at inference, where something is compiled, and where somebody observes."""
    if kept is None:
        return layer_scale(branch(norm(hidden_states), packing, None), added_to=hidden_states)
    residual = layer_scale(branch(norm(hidden_states.index_select(1, kept.tokens)), kept.packing, None))
    parts = residual.split(kept.packing.lengths, dim=1)
    residual = torch.cat([part * scale for part, scale in zip(parts, kept.scales, strict=True)], dim=1)
    return hidden_states.index_add(1, kept.tokens, residual.to(hidden_states.dtype))
