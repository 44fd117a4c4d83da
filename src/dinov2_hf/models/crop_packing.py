"""
Crops of several resolutions in one token sequence (paper, section 5: "sequence packing" and "efficient stochastic
depth").

Every norm, projection and feed-forward network is a function of one token, so it may run on the tokens of all crops
at once: `(1, sum_i n_i * t_i, D)` for `n_i` crops of `t_i` tokens at resolution `i`. Only attention must keep crops
apart, and it does so by running once per resolution on a dense `(n_i, heads, t_i, head_dim)` batch. The result equals
separate forward passes to rounding; nothing is padded and no attention mask is built.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CropPacking:
    """
    How a packed sequence is laid out: resolution after resolution, crop after crop.

    Args:
        num_images: crops of each resolution, `n_i`.
        num_tokens: tokens of one crop of each resolution, `t_i`.
    """

    num_images: tuple[int, ...]
    num_tokens: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each resolution in the packed sequence, `n_i * t_i`."""
        return [images * tokens for images, tokens in zip(self.num_images, self.num_tokens, strict=True)]


def pack_crops(crops: list[torch.Tensor]) -> tuple[torch.Tensor, CropPacking]:
    """
    Lay token sequences `(n_i, t_i, D)` end to end: `(1, sum_i n_i * t_i, D)` and the layout.
    """
    packing = CropPacking(tuple(crop.shape[0] for crop in crops), tuple(crop.shape[1] for crop in crops))
    return torch.cat([crop.flatten(0, 1) for crop in crops]).unsqueeze(0), packing


def unpack_crops(packed: torch.Tensor, packing: CropPacking) -> list[torch.Tensor]:
    """
    The inverse of `pack_crops`: views `(n_i, t_i, ...)` of a packed `(1, sum_i n_i * t_i, ...)`.
    """
    groups = packed.squeeze(0).split(packing.lengths)
    return [
        group.unflatten(0, (images, tokens))
        for group, images, tokens in zip(groups, packing.num_images, packing.num_tokens, strict=True)
    ]


def attend_per_resolution(
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: CropPacking,
) -> torch.Tensor:
    """
    Run `attend` on each resolution alone.

    Args:
        attend: takes query, key and value of shape `(n, heads, t, head_dim)`, returns `(n, t, heads, head_dim)`.
        query, key, value: `(1, sum_i n_i * t_i, heads, head_dim)`.

    Returns:
        `(1, sum_i n_i * t_i, heads, head_dim)`.
    """
    outputs = [
        attend(*(part.transpose(1, 2) for part in group))
        for group in zip(*(unpack_crops(tensor, packing) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat([output.flatten(0, 1) for output in outputs]).unsqueeze(0)


def num_kept(num_images: int, drop_rate: float) -> int:
    """Crops out of `num_images` that a residual branch keeps: `max(int(n * (1 - p)), 1)`, truncated."""
    return max(int(num_images * (1 - drop_rate)), 1)


def draw_kept_tokens(
    packing: CropPacking, drop_rate: float, device: torch.device
) -> tuple[torch.Tensor, CropPacking, torch.Tensor]:
    """
    Choose the crops that one residual branch sees (efficient stochastic depth): the first `s` of a random permutation
    of the `n` crops of each resolution, with the branch scaled by `n / s` so that its mean is unchanged.

    Returns:
        `token_indices` `(T',)` into the packed sequence, the layout of the kept tokens, and the scale of every kept
        token `(T', 1)` in float32.
    """
    indices, scales, kept, start = [], [], [], 0
    for images, tokens in zip(packing.num_images, packing.num_tokens, strict=True):
        keep = num_kept(images, drop_rate)
        crops = torch.randperm(images, device=device)[:keep]
        indices.append((start + crops[:, None] * tokens + torch.arange(tokens, device=device)).flatten())
        scales.append(torch.full((keep * tokens, 1), images / keep, device=device))
        kept.append(keep)
        start += images * tokens
    return torch.cat(indices), CropPacking(tuple(kept), packing.num_tokens), torch.cat(scales)
