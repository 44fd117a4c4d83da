"""Position embeddings for the patch grid of an image of any size."""

import torch
from torch import nn


def interpolate_position_embeddings(
    position_embeddings: torch.Tensor, grid: tuple[int, int], *, offset: float, antialias: bool
) -> torch.Tensor:
    """
    Resize stored position embeddings to another patch grid, bicubic and in float32. The CLS position is untouched.

    Args:
        position_embeddings: `(1, 1 + M * M, D)`, CLS first.
        grid: wanted patches `(h, w)`.
        offset: when not 0, the scale handed to the resampling is `((h + offset) / M, (w + offset) / M)` and is used as
            given, which shifts the sampled coordinates a little; the original does this (with 0.1) for models without
            registers.
        antialias: widen the cubic kernel when shrinking.

    Returns:
        `(1, 1 + h * w, D)`; the input itself when the grid is already `M * M`.
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

    A trace takes sizes in Python for constants. Compiled, they stay variable, so one trace is right at every size.
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
