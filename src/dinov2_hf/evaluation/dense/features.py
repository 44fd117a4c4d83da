"""Maps of patch features for the dense heads, from any vision transformer (paper, section 7.4).

Shapes: `B` images, `h` x `w` patches, `D` hidden size, `n` blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...features import patch_size_of
from ...models.modeling_dinov2_heads import center_pad


def square_patch_size(model: nn.Module) -> int:
    """The side of a patch in pixels; `ValueError` where the model does not say, or its patches are not square."""
    height, width = patch_size_of(model)
    if height != width:
        raise ValueError(f"the model has config.patch_size=({height}, {width}), but square patches are needed.")
    return height


def check_image_size(image_size: int, patch_size: int, field: str) -> None:
    """`ValueError` when images of this side hold no patch."""
    if image_size < patch_size:
        raise ValueError(
            f"`{field}` is {image_size}, less than a patch of the model ({patch_size} pixels); choose at least that."
        )


def segmentation_features(model: nn.Module, pixel_values: Tensor, num_layers: int) -> Tensor:
    """The final-normed patches of the last blocks.

    Args:
        model: as in `layer_maps`.
        pixel_values: (B, C, H, W) of any size; padded by `center_pad`.
        num_layers: n.

    Returns:
        (B, n * D, h, w), from the shallowest block to the last.
    """
    depth = num_blocks(model)
    maps = layer_maps(model, pixel_values, range(depth - num_layers, depth), final_norm=True)
    return torch.cat([patches for patches, _ in maps], dim=1)


def depth_features(model: nn.Module, pixel_values: Tensor, layers: Sequence[int]) -> Tensor:
    """The patches of some blocks without the final norm, each with the CLS token of its block beside it.

    Args:
        model, pixel_values: as in `segmentation_features`.
        layers: n 0-based blocks, ascending.

    Returns:
        (B, 2 * n * D, h, w): patches, CLS, patches of the next block, ...
    """
    features = []
    for patches, cls in layer_maps(model, pixel_values, layers, final_norm=False):
        features += [patches, cls[:, :, None, None].expand_as(patches)]
    return torch.cat(features, dim=1)


def num_blocks(model: nn.Module) -> int:
    """`ValueError` where the model does not say how many blocks it has."""
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if depth is None:
        raise ValueError("the model has no config.num_hidden_layers, which is needed to know its last blocks.")
    return depth


def layer_maps(
    model: nn.Module, pixel_values: Tensor, blocks: Sequence[int], final_norm: bool
) -> list[tuple[Tensor, Tensor]]:
    """Patches (B, D, h, w) and CLS token (B, D) after some blocks.

    Args:
        model: one with `get_intermediate_layers`, such as `DINOv2Model`, or any that can output its hidden states (CLS
            token, `config.num_register_tokens` registers, then patches row by row) and, for `final_norm`, keeps its
            final norm as `layernorm` or `norm`.
        pixel_values: (B, C, H, W), on the device of the model.
        blocks: 0-based, ascending.

    Raises:
        ValueError: the model has neither, or its tokens do not fit the grid of the patches.
    """
    patch_size = square_patch_size(model)
    pixel_values = center_pad(pixel_values, patch_size)
    height, width = (side // patch_size for side in pixel_values.shape[-2:])
    if hasattr(model, "get_intermediate_layers"):  # keeps the tokens of these blocks only
        return list(
            model.get_intermediate_layers(
                pixel_values, n=list(blocks), reshape=True, return_class_token=True, norm=final_norm
            )
        )
    norm = getattr(model, "layernorm", None) or getattr(model, "norm", None)
    hidden_states = model(pixel_values, output_hidden_states=True).hidden_states
    if hidden_states is None or (final_norm and norm is None):
        raise ValueError(
            f"the model ({type(model).__name__}) has no get_intermediate_layers, and gives no hidden states or has no"
            " final norm called layernorm or norm, one of which is needed for the features of its blocks."
        )
    registers = getattr(model.config, "num_register_tokens", None) or 0
    maps = []
    for block in blocks:
        tokens = hidden_states[block - num_blocks(model)]  # from the end: some count the embeddings, some do not
        if tokens.ndim != 3 or tokens.shape[1] != 1 + registers + height * width:
            raise ValueError(
                f"the model gives hidden states of shape {tuple(tokens.shape)}, but 1 CLS, {registers} registers and"
                f" {height} x {width} patches are needed."
            )
        tokens = norm(tokens) if final_norm else tokens
        maps.append((tokens[:, 1 + registers :].transpose(1, 2).unflatten(2, (height, width)), tokens[:, 0]))
    return maps
