"""
The residual stream in training: reading the input of a block from it and adding the output to it, with few passes over
memory.

A branch of a block is `x + scale * gain * (inputs @ weight.T + bias)`, with `inputs` computed from `norm(x)`. Autograd
would save the product, its copies scaled by LayerScale and by stochastic depth, and the input of the norm in float32,
and read each of them again. Most of this is not needed. The gradient of the gain follows from the gradient of the
weight before the gain:

    G = gradient.T @ inputs        d weight = gain * G        d gain = sum_j weight_j * G_j + bias * sum(gradient)

The output of the norm is not saved either: the first layer of a branch uses it, and its backward pass computes it
again. Under autocast the norm reads rows in the dtype in which its output is multiplied, and saves these. The stream
itself is float32 under every precision, and so is everything that is added to it.

Shapes: `T` tokens of all crops, `T'` tokens of the crops that a branch keeps, `D` channels of the stream, `d` channels
of the inputs.
"""

from collections.abc import Callable

import torch
from torch import nn

from .crop_packing import CropPacking, KeptCrops


# Devices on which the kernel of a norm's gradient sums the gradients of its weights in the dtype of the rows, unless
# it gets float32, and on which a float32 sum of half-precision rows first copies all rows. Elsewhere sums are float32.
SUM_IN_HALF_PRECISION = {"cpu"}


class ResidualStream:
    """
    The stream before one branch.

    Args:
        hidden_states: `(..., D)`; with `kept` `(1, T, D)`.
        norm: norm of the branch.
        gain: LayerScale of the branch, `(D,)`.
        kept: crops that the branch processes; `None` means all.
        is_own: the previous branch made `hidden_states`, and nothing else uses it.
        is_gradient_own: only the next branch gets the result of `add`, and nothing else uses it.

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
        self.hidden_states, self.norm, self.gain, self.kept = hidden_states, norm, gain, kept
        self.is_own, self.is_gradient_own = is_own, is_gradient_own

    def take(self, linears: tuple[nn.Linear, ...]) -> torch.Tensor:
        """
        The output of the first layer of the branch, `(..., d)`, for all rows or for the kept crops. Several `linears`
        are concatenated.
        """
        tokens = None if self.kept is None else self.kept.tokens
        norm = self.norm.weight, self.norm.bias, self.norm.eps
        parameters = [linear.weight for linear in linears] + [linear.bias for linear in linears]
        self.hidden_states, product = _TakeNormed.apply(
            self.hidden_states, tokens, *norm, self.is_gradient_own, *parameters
        )
        return product

    def add(self, linear: nn.Linear, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """
        The stream after the branch.

        Args:
            linear: the last layer of the branch.
            inputs: inputs of that layer, `(..., d)`: all rows, or the rows of each resolution.
        """
        in_place = self.is_own and self.kept is not None
        return _AddToStream.apply(
            self.hidden_states, linear.weight, linear.bias, self.gain, self.kept, in_place, *inputs
        )


def first_of_branch(
    linears: tuple[nn.Module, ...], hidden_states: torch.Tensor, stream: ResidualStream | None
) -> torch.Tensor:
    """
    The output of the first layer of a branch (one linear map or several, concatenated) on the norm or the stream.
    """
    if stream is not None:
        return stream.take(linears)
    if len(linears) == 1:
        return linears[0](hidden_states)
    # One product: one cast of the input, and one gradient of it, summed in float32.
    biases = [linear.bias for linear in linears]
    bias = None if biases[0] is None else torch.cat(biases)
    return nn.functional.linear(hidden_states, torch.cat([linear.weight for linear in linears]), bias)


def last_of_branch(
    linear: nn.Module, inputs: torch.Tensor | tuple[torch.Tensor, ...], stream: ResidualStream | None
) -> torch.Tensor:
    """The output of the last layer of a branch, or the stream with it added. Inputs may be split by resolution."""
    if stream is not None:
        return stream.add(linear, inputs if isinstance(inputs, tuple) else (inputs,))
    if isinstance(inputs, tuple):
        inputs = torch.cat([part.flatten(0, 1) for part in inputs]).unsqueeze(0)
    return linear(inputs)


def may_fuse(linear: nn.Module) -> bool:
    """
    Whether the weight of `linear` may be used without calling it: it is trained, no adapter replaces it, it has no
    hooks, and its weight does not only arrive with the call (as under DeepSpeed ZeRO-3).
    """
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return False
    return linear.weight.requires_grad and linear.weight.numel() > 0


def is_eager_training(block: nn.Module, layers: tuple[nn.Module, ...]) -> bool:
    """
    Whether gradients are wanted, nothing is traced or compiled (compilers fuse by themselves), and no part of this
    block has hooks or is replaced. The hooks of FSDP2 do not matter.

    Args:
        layers: the first and the last layers of its branches, whose weights `ResidualStream` uses.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(map(may_fuse, layers)) and all(
        hasattr(module, "unshard") or not module._forward_hooks for module in block.modules() if module is not block
    )


class _TakeNormed(torch.autograd.Function):
    """
    The unchanged stream, and some concatenated linear maps of the norm of some or all of its rows. The two gradients
    meet here: the gradients of the rows are added at their positions, without filling and adding a tensor of zeros.
    """

    @staticmethod
    def forward(ctx, hidden_states, tokens, norm_weight, norm_bias, eps, is_gradient_own, *parameters):
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        rows = (hidden_states if tokens is None else hidden_states.index_select(1, tokens)).to(dtype)
        normed, mean, rstd = torch.native_layer_norm(rows, *_norm_parameters(norm_weight, norm_bias, rows), eps)
        weights, biases = parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]
        weight = _side_by_side(weights, dtype)
        with torch.autocast(device, enabled=False):
            bias = None if biases[0] is None else _side_by_side(biases, dtype)
            product = nn.functional.linear(normed, weight, bias)
        ctx.save_for_backward(rows, mean, rstd, norm_weight, norm_bias, weight, tokens)
        ctx.eps, ctx.is_gradient_own = eps, is_gradient_own
        ctx.lengths, ctx.dtype = [len(part) for part in weights], weights[0].dtype
        ctx.bias_dtype = None if bias is None else biases[0].dtype
        # `data`, because a view could not be added to in place.
        return hidden_states.data, product

    @staticmethod
    def backward(ctx, gradient, product_gradient):
        rows, mean, rstd, norm_weight, norm_bias, weight, tokens = ctx.saved_tensors
        norm = _norm_parameters(norm_weight, norm_bias, rows)
        with torch.autocast(gradient.device.type, enabled=False):
            by_row = product_gradient.flatten(0, -2)
            normed = torch.native_layer_norm(rows, *norm, ctx.eps)[0]
            parts = (by_row.T @ normed.flatten(0, -2)).split(ctx.lengths)
            del normed
            weight_gradients = [part.to(ctx.dtype) for part in parts]
            bias_gradients = [None] * len(parts)
            if ctx.bias_dtype is not None:
                bias_gradients = _sum_of_rows(by_row, ctx.bias_dtype).split(ctx.lengths)
            normed_gradient = (by_row @ weight).view(rows.shape)
        shape, *norm = norm
        rows_gradient, norm_weight_gradient, norm_bias_gradient = torch.ops.aten.native_layer_norm_backward(
            normed_gradient.to(norm[0].dtype), rows.to(norm[0].dtype), shape, mean, rstd, *norm, [True] * 3
        )
        if tokens is None:
            gradient = gradient + rows_gradient
        else:
            gradient = gradient if ctx.is_gradient_own else gradient.clone()
            gradient.index_add_(1, tokens, rows_gradient.to(gradient.dtype))
        of_norm = norm_weight_gradient.to(norm_weight.dtype), norm_bias_gradient.to(norm_bias.dtype)
        return gradient, None, *of_norm, None, None, *weight_gradients, *bias_gradients


def _norm_parameters(
    weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Size, torch.Tensor, torch.Tensor]:
    """Shape, weight and bias of a norm, in the form that its kernels need for these rows."""
    dtype = torch.promote_types(rows.dtype, torch.float32) if rows.device.type in SUM_IN_HALF_PRECISION else rows.dtype
    return weight.shape, weight.to(dtype), bias.to(dtype)


def _sum_of_rows(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    The sum in float32. Where that would copy the rows and take 3 times as long, it is rounded once to their dtype.
    """
    if rows.device.type in SUM_IN_HALF_PRECISION:
        return rows.sum(dim=0).to(dtype)
    return rows.sum(dim=0, dtype=dtype)


def _side_by_side(parts: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
    """Concatenated and cast, in one pass over memory."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    out = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=dtype)
    for rows, part in zip(out.split([len(part) for part in parts]), parts, strict=True):
        rows.copy_(part)
    return out


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
            if ctx.dtype == torch.float16:  # in fp16, a weight times a LayerScale of 1e-5 is rounded to zero
                parts, scaled_weight = [(part * gain).to(ctx.dtype) for part in parts], weight.to(ctx.dtype)
            else:
                scaled_weight = torch.mul(gain[:, None], weight, out=torch.empty_like(weight, dtype=ctx.dtype))
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
    return branch(hidden_states, packing if kept is None else kept.packing, stream)


def add_plainly(
    hidden_states: torch.Tensor,
    norm: nn.Module,
    branch: Branch,
    layer_scale: nn.Module,
    packing: CropPacking | None,
    kept: KeptCrops | None,
    **_,
) -> torch.Tensor:
    """The same, step by step: at inference, under a compiler, and if a module has hooks."""
    if kept is None:
        return layer_scale(branch(norm(hidden_states), packing, None), added_to=hidden_states)
    residual = layer_scale(branch(norm(hidden_states.index_select(1, kept.tokens)), kept.packing, None))
    parts = residual.split(kept.packing.lengths, dim=1)
    residual = torch.cat([part * scale for part, scale in zip(parts, kept.scales, strict=True)], dim=1)
    return hidden_states.index_add(1, kept.tokens, residual.to(hidden_states.dtype))
