"""
Crops of several resolutions in one token sequence (paper, section 5: "sequence packing" and "efficient stochastic
depth").

Every norm, projection and feed-forward network works on single tokens, so it can run on the tokens of all crops at
once: `(1, sum_i n_i * t_i, D)` for `n_i` crops of `t_i` tokens at resolution `i`. Only attention must keep crops
apart. It runs once per resolution, on a dense `(n_i, heads, t_i, head_dim)` batch. The result equals separate forward
passes to rounding. Nothing is padded and no attention mask is built.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CropPacking:
    """
    The layout of a packed sequence: resolution after resolution, crop after crop.

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
    Concatenate token sequences `(n_i, t_i, D)` to `(1, sum_i n_i * t_i, D)`, and return it with the layout.
    """
    packing = CropPacking(tuple(crop.shape[0] for crop in crops), tuple(crop.shape[1] for crop in crops))
    sequences = [crop.flatten(0, 1) for crop in crops]
    return (torch.cat(sequences) if len(crops) > 1 else sequences[0]).unsqueeze(0), packing


def unpack_crops(packed: torch.Tensor, packing: CropPacking) -> list[torch.Tensor]:
    """
    The inverse of `pack_crops`: views `(n_i, t_i, ...)` of a packed `(1, sum_i n_i * t_i, ...)`.
    """
    groups = packed.squeeze(0).split(packing.lengths)
    return [
        group.unflatten(0, (images, tokens))
        for group, images, tokens in zip(groups, packing.num_images, packing.num_tokens, strict=True)
    ]


class _SplitHeads(torch.autograd.Function):
    """Views of a packed query, key and value. Their gradients are written directly into one packed gradient."""

    @staticmethod
    def forward(ctx, qkv: torch.Tensor, packing: CropPacking, head_dim: int) -> tuple[torch.Tensor, ...]:
        ctx.packing, ctx.shape, ctx.head_dim = packing, qkv.shape, head_dim
        return _SplitHeads.views(qkv, packing, head_dim)

    @staticmethod
    def backward(ctx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient = gradients[0].new_empty(ctx.shape)
        for view, part in zip(_SplitHeads.views(gradient, ctx.packing, ctx.head_dim), gradients, strict=True):
            view.copy_(part)
        return gradient, None, None

    @staticmethod
    def views(qkv: torch.Tensor, packing: CropPacking, head_dim: int) -> tuple[torch.Tensor, ...]:
        groups = unpack_crops(qkv.unflatten(-1, (3, -1, head_dim)), packing)
        return tuple(part for group in groups for part in group.permute(2, 0, 3, 1, 4).unbind())


def split_heads(qkv: torch.Tensor, packing: CropPacking, head_dim: int) -> list[tuple[torch.Tensor, ...]]:
    """
    Query, key and value of each resolution, `(n_i, heads, t_i, head_dim)`, from `(1, sum_i n_i * t_i, 3 * D)`.
    """
    split = _SplitHeads.views if torch.compiler.is_compiling() else _SplitHeads.apply
    parts = split(qkv, packing, head_dim)
    return [parts[start : start + 3] for start in range(0, len(parts), 3)]


def num_kept(num_images: int, drop_rate: float) -> int:
    """The number of `num_images` crops that a residual branch keeps: `max(int(n * (1 - p)), 1)`, truncated."""
    return max(int(num_images * (1 - drop_rate)), 1)


@dataclass(frozen=True)
class KeptCrops:
    """
    The crops that one residual branch processes (efficient stochastic depth).

    Args:
        tokens: `(T',)`, indices of their tokens into the packed sequence.
        packing: their layout.
        scales: for each resolution `n_i / s_i`, which keeps the mean of the branch when `s_i` of `n_i` crops are kept.
    """

    tokens: torch.Tensor
    packing: CropPacking
    scales: tuple[float, ...]


def draw_kept_crops(
    packing: CropPacking, drop_rate: float, device: torch.device, num_branches: int
) -> list[KeptCrops]:
    """
    Choose the crops that each branch processes: the first `s_i` of a random permutation of the `n_i` crops of each
    resolution. All permutations are drawn at once, which takes a few kernels instead of a few for each branch.
    """
    tokens, scales, kept, start = [], [], [], 0
    for images, length in zip(packing.num_images, packing.num_tokens, strict=True):
        keep = num_kept(images, drop_rate)
        crops = torch.rand(num_branches, images, device=device).argsort(dim=1)[:, :keep]
        first = start + crops * length
        tokens.append((first[:, :, None] + torch.arange(length, device=device)).flatten(1))
        scales.append(images / keep)
        kept.append(keep)
        start += images * length
    layout = CropPacking(tuple(kept), packing.num_tokens)
    return [KeptCrops(indices, layout, tuple(scales)) for indices in torch.cat(tokens, dim=1)]
