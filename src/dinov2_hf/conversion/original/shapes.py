"""Derives configurations from the shapes of the original's tensors, and checks that a file has all their tensors."""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from ...models import DINOv2Config, DINOv2Model
from ...pretraining import DINOv2PreTrainingConfig
from ...public_names import some
from .names import State, backbone_to_original
from .record import BACKBONE_FIELDS, Choice, choose


# The value of all released networks.
HEAD_SIZE = 64


def backbone_config(
    state: State,
    *,
    num_attention_heads: int | None = None,
    interpolate_offset: float | None = None,
    interpolate_antialias: bool | None = None,
    record: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[DINOv2Config, list[Choice]]:
    """
    The configuration of a backbone in the original's names, after checking that the tensors fit it.

    Args:
        num_attention_heads, interpolate_offset, interpolate_antialias: no tensor gives them. `None`: the recorded
            value; without a record 64 channels for each head, as in all released networks, and 0.1 and `False` without
            registers, 0.0 and `True` with them, as released.
        record: fields of the configuration that this package stored in the file.

    Returns:
        The configuration, and the source of each of those three values.

    Raises:
        `ValueError`: tensors are missing, unexpected or have another shape, or no configuration has these shapes.
    """
    hidden_size = shape_of(state, "cls_token", 3)[-1]
    num_positions = shape_of(state, "pos_embed", 3)[1]
    _, num_channels, patch_size, _ = shape_of(state, "patch_embed.proj.weight", 4)
    num_registers = shape_of(state, "register_tokens", 3)[1] if "register_tokens" in state else 0
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    grid_size = math.isqrt(max(num_positions - 1, 0))
    if grid_size == 0 or grid_size**2 != num_positions - 1:
        raise ValueError(
            f"`pos_embed` holds {num_positions} positions, but 1 and those of a square grid are expected (1370 for"
            " 37 x 37 patches)."
        )
    if num_attention_heads is None and "num_attention_heads" not in record and hidden_size % HEAD_SIZE:
        raise ValueError(
            f"`cls_token` has {hidden_size} channels, which do not divide into attention heads of {HEAD_SIZE}; give"
            " the number of the network's heads with --num_attention_heads."
        )
    released = "as in the released networks " + ("with registers" if num_registers else "without registers")
    choices = [
        choose(
            "num_attention_heads", num_attention_heads, record,
            (hidden_size // HEAD_SIZE, f"one for every {HEAD_SIZE} channels, as in all released networks"),
        ),
        choose("interpolate_offset", interpolate_offset, record, (0.0 if num_registers else 0.1, released)),
        choose("interpolate_antialias", interpolate_antialias, record, (num_registers > 0, released)),
    ]  # fmt: skip
    noted = {name: record[name] for name in BACKBONE_FIELDS if name in record}
    config = DINOv2Config(
        hidden_size=hidden_size,
        num_hidden_layers=depth,
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        num_register_tokens=num_registers,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        **_feed_forward(state, hidden_size),
        **noted | {choice.name: choice.value for choice in choices},
    )
    with torch.device("meta"):
        expected = backbone_to_original(DINOv2Model(config).state_dict())
    if not has_layer_scale(state):
        expected = {name: tensor for name, tensor in expected.items() if not name.endswith(".gamma")}
    check_tensors(state, {name: tensor.shape for name, tensor in expected.items()})
    return config, choices


def has_layer_scale(state: State) -> bool:
    """Whether the network was built with LayerScale. Otherwise the original has no tensor for it."""
    return any(name.endswith(".gamma") for name in state)


def with_layer_scale(state: State) -> State:
    """The same backbone with LayerScale: ones if the original has none, which change no feature."""
    if has_layer_scale(state):
        return state
    ones = {}
    for name, tensor in state.items():
        norm = re.fullmatch(r"(blocks\.\d+\.)norm([12])\.weight", name)
        if norm is not None:
            ones[f"{norm[1]}ls{norm[2]}.gamma"] = torch.ones_like(tensor)
    return state | ones


def _feed_forward(state: State, hidden_size: int) -> dict[str, object]:
    """`use_swiglu_ffn` and the `mlp_ratio` that gives the hidden width of block 0."""
    use_swiglu = "blocks.0.mlp.w12.weight" in state
    name = f"blocks.0.mlp.{'w3' if use_swiglu else 'fc2'}.weight"
    width = shape_of(state, name, 2)[1]
    # The ratio of all released networks, then the one that makes the width before any rounding; the next float up is
    # for quotients whose product with the hidden size falls short of a whole number.
    ratio = 1.5 * width / hidden_size if use_swiglu else width / hidden_size
    for candidate in (4, ratio, math.nextafter(ratio, math.inf)):
        features = int(hidden_size * candidate)
        if (8 * ((int(features * 2 / 3) + 7) // 8) if use_swiglu else features) == width:
            is_whole = candidate == int(candidate)
            return {"use_swiglu_ffn": use_swiglu, "mlp_ratio": int(candidate) if is_whole else candidate}
    raise ValueError(f"`{name}` reads {width} channels, but a SwiGLU network has a multiple of 8.")


def pretraining_config(
    config: DINOv2Config, heads: Mapping[str, State], record: Mapping[str, Any] = MappingProxyType({})
) -> DINOv2PreTrainingConfig:
    """
    The configuration of a teacher with its heads, which are in our names. A teacher does not show the centering and
    the weights of the losses. They come from the record of the file, or are defaults.

    Raises:
        `ValueError`: tensors are missing, unexpected or have another shape, or the two heads differ in depth or hidden
            width.
    """
    if "dino_head" not in heads:
        raise ValueError("it holds an `ibot_head` without a `dino_head`; both, or the second alone, are expected.")
    sizes = {name: _head_sizes(name, head, config.hidden_size) for name, head in heads.items()}
    fields = dict(sizes["dino_head"])
    if "ibot_head" in heads:
        ibot = sizes["ibot_head"]
        for name in ("head_num_layers", "head_hidden_size"):
            if ibot.get(name) != fields.get(name):
                raise ValueError(
                    f"`{name}` is {fields.get(name)} in `dino_head` and {ibot.get(name)} in `ibot_head`, but one value"
                    " for both is expected."
                )
        fields |= {
            "separate_ibot_head": True,
            "ibot_num_prototypes": ibot["num_prototypes"],
            "ibot_bottleneck_size": ibot["bottleneck_size"],
        }
    known = DINOv2PreTrainingConfig.__annotations__.keys() - {"backbone_config"}
    noted = {name: value for name, value in record.items() if name in known and not name.startswith("_")}
    return DINOv2PreTrainingConfig(backbone_config=config, **noted | fields)


def _head_sizes(name: str, head: State, hidden_size: int) -> dict[str, int]:
    """Fields of `DINOv2PreTrainingConfig` for one projection head."""
    num_layers = len([key for key in head if re.fullmatch(r"mlp\.\d+\.weight", key)])
    num_prototypes, bottleneck_size = shape_of(head, "last_layer.weight_v", 2)
    fields = {"num_prototypes": num_prototypes, "bottleneck_size": bottleneck_size, "head_num_layers": num_layers}
    if num_layers > 1:
        fields["head_hidden_size"] = shape_of(head, "mlp.0.weight", 2)[0]
    widths = [hidden_size] + [fields.get("head_hidden_size")] * (num_layers - 1) + [bottleneck_size]
    expected = {"last_layer.weight_g": (num_prototypes, 1), "last_layer.weight_v": (num_prototypes, bottleneck_size)}
    for layer in range(max(num_layers, 1)):
        width_in, width_out = widths[layer : layer + 2]
        expected |= {f"mlp.{2 * layer}.weight": (width_out, width_in), f"mlp.{2 * layer}.bias": (width_out,)}
    try:
        check_tensors(head, expected)
    except ValueError as error:
        raise ValueError(f"in `{name}`, {error}") from None
    return fields


def check_tensors(state: State, expected: Mapping[str, tuple[int, ...]]) -> None:
    """
    Raises:
        `ValueError`: names or shapes differ from the expected ones.
    """
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        parts = [f"{some(missing, '`')} missing"] * bool(missing) + [f"{some(unexpected, '`')} unexpected"] * bool(
            unexpected
        )
        raise ValueError(f"of {len(expected)} tensors expected, {' and '.join(parts)}.")
    for name, shape in expected.items():
        if state[name].shape != torch.Size(shape):
            raise ValueError(f"`{name}` has shape {tuple(state[name].shape)}, but {tuple(shape)} is expected.")


def shape_of(state: State, name: str, num_dimensions: int) -> torch.Size:
    """
    Raises:
        `ValueError`: there is no such tensor, or it has another number of dimensions.
    """
    if name not in state:
        raise ValueError(f"`{name}` is missing.")
    if state[name].ndim != num_dimensions or 0 in state[name].shape:
        raise ValueError(
            f"`{name}` has shape {tuple(state[name].shape)}, but {num_dimensions} dimensions, none of them 0, are"
            " expected."
        )
    return state[name].shape
