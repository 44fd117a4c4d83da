"""
Which images a term of the loss compares with each other: those of a device, as in the paper, or groups of the images
of all devices (DINOv3, section 3, has KoLeo look at groups of 16).

Shapes: `W` ranks, `G` = 2 global crops of `B` images of each, `g` images of a group, `D` hidden size.
"""

import torch
import torch.distributed as dist


def in_groups(features: torch.Tensor, group_size: int | None, ranks: dist.ProcessGroup | None = None) -> torch.Tensor:
    """
    Features of this rank, cut into groups, with those of other ranks where groups reach over ranks. What is computed
    of the groups, and averaged over them, then has the gradient of one process with the images of all.

    Args:
        features: `(G, B, D)`, as many on every rank.
        group_size: `g`, of consecutive images in the order of ranks; `None` for those of this rank, 0 for all.
        ranks: that compute together; `None` is all.

    Returns:
        `(groups, g, D)`, each of one crop: of this rank alone where groups do not reach over ranks, else of all ranks.

    Raises:
        `ValueError`: the images cannot be cut into such groups.
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
    """`ValueError` unless so many images of all ranks can be cut into groups."""
    if group_size and num_images % group_size:
        raise ValueError(
            f"`{name}` is {group_size}, but a forward pass of all processes has {num_images} images, which it does not"
            " divide; use one that does, or 0 for all of them."
        )


class _OfAllRanks(torch.autograd.Function):
    """
    `(G, B, D)` to `(G, W * B, D)`. Every rank computes the same loss of the result, and gradients of weights are
    averaged over ranks, so each rank takes `W` times the gradient of its own images; nothing is exchanged backwards.
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
