"""Checkpoints in the original's layout, small and made by hand from its names and shapes."""

import zlib

import numpy as np
import torch

from dinov2_hf import DINOv2Model
from tests.parity.original_names import fused_parameters


def random_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers that depend on the name only; `RandomState` gives the same in every version of numpy."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif "norm" in name and name.endswith("weight") or name.endswith("weight_g"):
        values = 1 + 0.1 * values
    elif len(shape) > 1 and name not in ("cls_token", "pos_embed", "register_tokens", "mask_token"):
        values = values / np.prod(shape[1:]) ** 0.5
    else:
        values = 0.3 * values
    return torch.tensor(values, dtype=torch.float32)


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: random_values(name, shape) for name, shape in shapes.items()}


def backbone_shapes(
    hidden_size: int = 32,
    depth: int = 3,
    *,
    num_registers: int = 0,
    swiglu_width: int | None = None,
    grid_size: int = 2,
    patch_size: int = 14,
    num_channels: int = 3,
    qkv_bias: bool = True,
    layer_scale: bool = True,
    mlp_width: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a backbone, blocks not chunked."""
    width = hidden_size
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + grid_size**2, width), "mask_token": (1, width)}
    if num_registers:
        shapes["register_tokens"] = (1, num_registers, width)
    shapes["patch_embed.proj.weight"] = (width, num_channels, patch_size, patch_size)
    shapes["patch_embed.proj.bias"] = (width,)
    for block in range(depth):
        inner = {"norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width)}
        if qkv_bias:
            inner["attn.qkv.bias"] = (3 * width,)
        inner |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
        inner |= {"norm2.weight": (width,), "norm2.bias": (width,)}
        if layer_scale:
            inner |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        if swiglu_width:
            inner |= {"mlp.w12.weight": (2 * swiglu_width, width), "mlp.w12.bias": (2 * swiglu_width,)}
            inner |= {"mlp.w3.weight": (width, swiglu_width), "mlp.w3.bias": (width,)}
        else:
            hidden = mlp_width or 4 * width
            inner |= {"mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,)}
            inner |= {"mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,)}
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in inner.items()}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def projection_head_shapes(
    hidden_size: int, num_prototypes: int, bottleneck_size: int, head_hidden_size: int, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `DINOHead`."""
    widths = [hidden_size] + [head_hidden_size] * (num_layers - 1) + [bottleneck_size]
    shapes = {}
    for layer in range(num_layers):
        prefix = "mlp" if num_layers == 1 else f"mlp.{2 * layer}"
        shapes |= {f"{prefix}.weight": (widths[layer + 1], widths[layer]), f"{prefix}.bias": (widths[layer + 1],)}
    return shapes | {
        "last_layer.weight_g": (num_prototypes, 1),
        "last_layer.weight_v": (num_prototypes, bottleneck_size),
    }


def segmentation_head(width: int, num_labels: int) -> dict[str, torch.Tensor]:
    shapes = {f"decode_head.bn.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"decode_head.conv_seg.weight": (num_labels, width, 1, 1), "decode_head.conv_seg.bias": (num_labels,)}
    return fill(shapes) | {"decode_head.bn.num_batches_tracked": torch.tensor(7)}


def depth_head(width: int, num_bins: int = 256) -> dict[str, torch.Tensor]:
    shapes = {"decode_head.conv_depth.weight": (num_bins, width, 1, 1), "decode_head.conv_depth.bias": (num_bins,)}
    return fill(shapes)


def classifier_head(width: int, num_labels: int) -> dict[str, torch.Tensor]:
    return fill({"weight": (num_labels, width), "bias": (num_labels,)})


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def assert_holds(model: DINOv2Model, state: dict[str, torch.Tensor]) -> None:
    """The backbone has exactly these tensors of the original, by a map of names that is not the product's."""
    fused = {name: torch.cat(list(parameters)) for name, parameters in fused_parameters(model).items()}
    assert fused.keys() == state.keys()
    for name, tensor in state.items():
        assert tensor.dtype == fused[name].dtype
        assert torch.equal(tensor, fused[name]), name


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
