"""Maps of patch features for the dense heads, from any vision transformer (paper, section 7.4).

Shapes: `B` images, `h` x `w` patches, `D` hidden size, `n` blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...feature_kinds import block_tokens, num_blocks, patch_size_of
from ...models.modeling_dinov2_heads import center_pad


def square_patch_size(model: nn.Module) -> int:
    """The side of a patch in pixels; `ValueError` if the model does not say it, or its patches are not square."""
    height, width = patch_size_of(model)
    if height != width:
        raise ValueError(f"the model has config.patch_size=({height}, {width}), but square patches are needed.")
    return height


def check_image_size(image_size: int, model: nn.Module, field: str) -> None:
    """`ValueError` if images of this side are smaller than a patch."""
    patch_size = square_patch_size(model)
    if image_size < patch_size:
        raise ValueError(
            f"`{field}` is {image_size}, less than a patch of the model ({patch_size} pixels); choose at least that."
        )


def segmentation_features(model: nn.Module, pixel_values: Tensor, num_layers: int) -> Tensor:
    """The final-normed patches of the last blocks, (B, n * D, h, w), from the shallowest block to the last.

    Args:
        model: as in `block_tokens`, with square patches.
        pixel_values: (B, C, H, W) of any size; padded by `center_pad`.
        num_layers: n.
    """
    depth = num_blocks(model)
    maps = layer_maps(model, pixel_values, range(depth - num_layers, depth), norm=True)
    return torch.cat([patches for patches, _ in maps], dim=1)


def depth_features(model: nn.Module, pixel_values: Tensor, layers: Sequence[int]) -> Tensor:
    """The patches of some blocks without the final norm, each concatenated with the CLS token of its block:
    (B, 2 * n * D, h, w), patches, CLS, patches of the next block, ...

    Args:
        model, pixel_values: as in `segmentation_features`.
        layers: n 0-based blocks, ascending.
    """
    features = []
    for patches, cls in layer_maps(model, pixel_values, layers, norm=False):
        features += [patches, cls[:, :, None, None].expand_as(patches)]
    return torch.cat(features, dim=1)


def layer_maps(
    model: nn.Module, pixel_values: Tensor, blocks: Sequence[int], *, norm: bool
) -> list[tuple[Tensor, Tensor]]:
    """Patches (B, D, h, w) and CLS token (B, D) after some blocks, see `block_tokens`."""
    patch_size = square_patch_size(model)
    pixel_values = center_pad(pixel_values, patch_size)
    size = [side // patch_size for side in pixel_values.shape[-2:]]
    tokens = block_tokens(model, pixel_values, blocks, norm=norm)
    return [(patches.transpose(1, 2).unflatten(2, size), cls) for patches, cls in tokens]
