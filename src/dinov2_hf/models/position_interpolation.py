"""Position embeddings for the patch grid of an image of any size."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn


@dataclass(frozen=True)
class _Resized:
    """The last positions that a module resized, and the inputs of that resizing."""

    stored: torch.Tensor  # a copy: the weights may change in place
    grid: tuple[int, int]
    offset: float
    antialias: bool
    positions: torch.Tensor


# Stored outside the modules, so that no state dict, copy or export of a module contains it.
_LAST_RESIZED: WeakKeyDictionary[nn.Module, _Resized] = WeakKeyDictionary()


def remembered_position_embeddings(
    owner: nn.Module, position_embeddings: torch.Tensor, grid: tuple[int, int], *, offset: float, antialias: bool
) -> torch.Tensor:
    """
    As `interpolate_position_embeddings`, but the last result for `owner` is reused as long as all of its inputs are
    the same. The weights are compared value by value, which takes a third of the time of resizing.

    Results are reused only on a CPU without gradients. On another device the comparison would wait for it, and a trace
    must contain the resizing itself. The result must not be changed in place.
    """
    if (
        position_embeddings.device.type != "cpu"
        or type(position_embeddings) is not nn.Parameter  # a shard, or a tensor without memory
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    ):
        return interpolate_position_embeddings(position_embeddings, grid, offset=offset, antialias=antialias)
    last = _LAST_RESIZED.get(owner)
    if (
        last is not None
        and (last.grid, last.offset, last.antialias) == (grid, offset, antialias)
        and last.stored.dtype == position_embeddings.dtype
        and torch.equal(last.stored, position_embeddings)
    ):
        return last.positions
    positions = interpolate_position_embeddings(position_embeddings, grid, offset=offset, antialias=antialias)
    if positions is not position_embeddings and type(positions) is torch.Tensor:
        stored = position_embeddings.detach().clone()
        _LAST_RESIZED[owner] = _Resized(stored, grid, offset, antialias, positions)
    return positions


def interpolate_position_embeddings(
    position_embeddings: torch.Tensor, grid: tuple[int, int], *, offset: float, antialias: bool
) -> torch.Tensor:
    """
    Resize stored position embeddings to another patch grid, bicubic and in float32. The CLS position is untouched.

    Args:
        position_embeddings: `(1, 1 + M * M, D)`, CLS first.
        grid: wanted patches `(h, w)`.
        offset: if not 0, the scale of the resampling is `((h + offset) / M, (w + offset) / M)`, used as given. This
            shifts the sampled coordinates a little. The original does this (with 0.1) for models without registers.
        antialias: widen the cubic kernel when shrinking.

    Returns:
        `(1, 1 + h * w, D)`; the input itself if the grid is already `M * M`.
    """
    height, width = grid
    num_patches, side = position_embeddings.shape[1] - 1, int((position_embeddings.shape[1] - 1) ** 0.5)
    is_traced = torch.jit.is_tracing() and torch.is_tensor(height)
    if not is_traced and height * width == num_patches and height == width:
        return position_embeddings
    stored = position_embeddings[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if is_traced:
        resized = _resize_in_trace(stored, height, width, float(offset), antialias)
    else:
        scales = ((height + offset) / side, (width + offset) / side)
        target = {"scale_factor": scales} if offset else {"size": (height, width)}
        resized = nn.functional.interpolate(stored, mode="bicubic", align_corners=False, antialias=antialias, **target)
        if resized.shape[-2:] != (height, width):
            raise ValueError(
                f"`interpolate_offset` is {offset}, which turns a {side} x {side} grid into"
                f" {tuple(resized.shape[-2:])} where {grid} is needed; use 0.1 or 0.0."
            )
    resized = resized.permute(0, 2, 3, 1).flatten(1, 2).to(position_embeddings.dtype)
    return torch.cat([position_embeddings[:, :1], resized], dim=1)


@torch.jit.script_if_tracing
def _resize_in_trace(
    stored: torch.Tensor, height: torch.Tensor, width: torch.Tensor, offset: float, antialias: bool
) -> torch.Tensor:
    """
    The resampling of `interpolate_position_embeddings` under `torch.jit.trace`, `(1, D, M, M)` to `(1, D, h, w)`.

    A trace treats sizes in Python as constants. In a compiled function they stay variable, so one trace is right at
    every size.
    """
    h, w, side = int(height), int(width), stored.shape[-1]
    if h == side and w == side:
        return stored
    if offset != 0.0:
        scales = [(h + offset) / side, (w + offset) / side]
        return nn.functional.interpolate(
            stored, scale_factor=scales, mode="bicubic", align_corners=False, antialias=antialias
        )
    return nn.functional.interpolate(stored, size=[h, w], mode="bicubic", align_corners=False, antialias=antialias)
