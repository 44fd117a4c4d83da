"""
The images that a loss term compares with each other: the images of a device, as in the paper, or groups of the images
of all devices (in DINOv3, section 3, KoLeo uses groups of 16).

Shapes: `W` ranks, `G` = 2 global crops of `B` images of each, `g` images of a group, `D` hidden size.
"""

import torch
import torch.distributed as dist


def in_groups(features: torch.Tensor, group_size: int | None, ranks: dist.ProcessGroup | None = None) -> torch.Tensor:
    """
    Features of this rank, split into groups, with features of other ranks if groups span several ranks. A loss that is
    computed for each group and averaged over groups then has the gradient of one process with all images.

    Args:
        features: `(G, B, D)`, the same number on every rank.
        group_size: `g` consecutive images in the order of ranks; `None` for the images of this rank, 0 for all images.
        ranks: the ranks that compute together; `None` means all ranks.

    Returns:
        `(groups, g, D)`, each of one crop: only the groups of this rank if groups do not span ranks, else those of all
        ranks.

    Raises:
        `ValueError`: the images cannot be split into such groups.
    """
    if group_size is None:
        return features
    num_images = features.shape[1]
    world_size = dist.get_world_size(ranks) if dist.is_available() and dist.is_initialized() else 1
    check_group_size(group_size, num_images * world_size)
    group_size = group_size or num_images * world_size
    if num_images % group_size:
        features = _OfAllRanks.apply(features, ranks)
    return features.unflatten(1, (-1, group_size)).flatten(0, 1)


def check_group_size(group_size: int, num_images: int, name: str = "group_size") -> None:
    """`ValueError` unless this number of images of all ranks can be split into groups."""
    if group_size and num_images % group_size:
        raise ValueError(
            f"`{name}` is {group_size}, which does not divide the {num_images} images of a forward pass of all"
            " processes; use a number that does, or 0 for all images."
        )


class _OfAllRanks(torch.autograd.Function):
    """
    `(G, B, D)` to `(G, W * B, D)`. Every rank computes the same loss from the result, and gradients of weights are
    averaged over ranks. So each rank takes `W` times the gradient of its own images, and the backward pass exchanges
    nothing.
    """

    @staticmethod
    def forward(ctx, features: torch.Tensor, ranks: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.rank, ctx.world_size = dist.get_rank(ranks), dist.get_world_size(ranks)
        everybody = features.new_empty(ctx.world_size, *features.shape)
        dist.all_gather(list(everybody), features.contiguous(), group=ranks)
        return everybody.movedim(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient.chunk(ctx.world_size, dim=1)[ctx.rank] * ctx.world_size, None
