"""The networks that `inference.py` compares: the same architecture and weights in ours and in each peer."""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from dinov2_hf import DINOv2Config, DINOv2Model


@dataclass(frozen=True)
class Peer:
    """A network under comparison; `fields` are keyword arguments of `DINOv2Config`."""

    module: str  # that the network comes from
    construct: Callable[[dict], nn.Module]
    with_weights: Callable[[dict, dict], nn.Module]  # of fields and our state dict
    forward: Callable[[nn.Module, torch.Tensor], Any]
    tokens: Callable[[Any], torch.Tensor]  # what `forward` gives as `(B, 1 + N, D)`: CLS and patches after the norm


def construct_ours(fields: dict) -> nn.Module:
    return DINOv2Model(DINOv2Config(**fields))


def construct_transformers(fields: dict) -> nn.Module:
    return Dinov2Model(Dinov2Config(**fields))


def transformers_with_weights(fields: dict, state: dict) -> nn.Module:
    return Dinov2Model.from_pretrained(None, config=Dinov2Config(**fields), state_dict=state)


def construct_timm(fields: dict) -> nn.Module:
    import timm

    return timm.create_model(
        "vit_giant_patch14_dinov2" if fields.get("use_swiglu_ffn") else "vit_small_patch14_dinov2",
        img_size=fields["image_size"],
        embed_dim=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        init_values=1.0,
        num_classes=0,
    )


def timm_with_weights(fields: dict, state: dict) -> nn.Module:
    state = original_state(state)
    del state["mask_token"]  # timm has none
    state = {name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): value for name, value in state.items()}
    return assigned(construct_timm, fields, state)


def construct_original(fields: dict) -> nn.Module:
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(
        img_size=fields["image_size"],
        patch_size=fields["patch_size"],
        embed_dim=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        ffn_layer="swiglufused" if fields.get("use_swiglu_ffn") else "mlp",
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention),
        init_values=1.0,
        block_chunks=0,
    )


def original_state(state: dict) -> dict:
    """Our weights under the original's names, with query, key and value as one."""
    replacements = [
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.", ""),
        (r"^encoder\.layer\.", "blocks."),
        (r"^layernorm\.", "norm."),
        (r"attention\.attention\.query", "attn.qkv"),
        (r"attention\.output\.dense", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"mlp\.weights_in", "mlp.w12"),
        (r"mlp\.weights_out", "mlp.w3"),
    ]
    renamed = {}
    for name, value in state.items():
        if "attention.attention.query" in name:
            value = torch.cat([state[name.replace("query", part)] for part in ("query", "key", "value")])
        elif "attention.attention." in name:
            continue
        for pattern, replacement in replacements:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def assigned(construct: Callable[[dict], nn.Module], fields: dict, state: dict) -> nn.Module:
    with torch.device("meta"):
        module = construct(fields)
    module.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    return module


PEERS = {
    "ours": Peer(
        "dinov2_hf.models.modeling_dinov2",
        construct_ours,
        partial(assigned, construct_ours),
        lambda module, images: module(images),
        lambda output: output.last_hidden_state,
    ),
    "transformers": Peer(
        "transformers.models.dinov2.modeling_dinov2",
        construct_transformers,
        transformers_with_weights,
        lambda module, images: module(images),
        lambda output: output.last_hidden_state,
    ),
    "timm": Peer(
        "timm",
        construct_timm,
        timm_with_weights,
        lambda module, images: module.forward_features(images),
        lambda output: output,
    ),
    "original": Peer(
        "dinov2.models.vision_transformer",
        construct_original,
        lambda fields, state: assigned(construct_original, fields, original_state(state)),
        lambda module, images: module.forward_features(images),
        lambda output: torch.cat([output["x_norm_clstoken"].unsqueeze(1), output["x_norm_patchtokens"]], dim=1),
    ),
}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(PEERS[name].module.split(".")[0]) is not None


def prepared(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).eval().requires_grad_(False)


def at_size(module: nn.Module, name: str, size: int) -> nn.Module:
    if name == "timm":
        module.set_input_size(img_size=size)
    return module
