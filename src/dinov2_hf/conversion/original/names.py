"""
Maps names of the original implementation's tensors to ours, in both directions.

The original has query, key and value in one matrix, `qkv`, stacked in that order; ours are three matrices. Apart from
this only names differ, so both directions keep every bit. Blocks may be chunked, `blocks.{chunk}.{block}.`, where
`block` counts from the first block of the network, not of the chunk.
"""

import re
from collections.abc import Mapping

import torch


State = dict[str, torch.Tensor]

OUTSIDE_THE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
IN_A_BLOCK = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
    # The same on both sides: norm1, norm2, mlp.fc1, mlp.fc2.
}
QKV = tuple(f"attention.attention.{name}" for name in ("query", "key", "value"))


def replace_beginning(name: str, beginnings: Mapping[str, str]) -> str:
    """`name` with the first of `beginnings` that it has, up to a dot or its end, replaced."""
    for old, new in beginnings.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def backbone_from_original(state: State) -> State:
    """
    Rename a backbone, without chunked blocks, from the original's names to ours.

    The parts of `qkv` are copies: views of one storage cannot be saved to safetensors.
    """
    converted = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if block is None:
            converted[OUTSIDE_THE_BLOCKS.get(name, name)] = tensor
            continue
        prefix, rest = f"encoder.layer.{block[1]}", block[2]
        if rest.startswith("attn.qkv."):
            kind = rest.removeprefix("attn.qkv.")
            for ours, part in zip(QKV, tensor.chunk(3), strict=True):
                converted[f"{prefix}.{ours}.{kind}"] = part.clone()
        else:
            converted[f"{prefix}.{replace_beginning(rest, IN_A_BLOCK)}"] = tensor
    return converted


def from_timm(state: State) -> State:
    """
    Rename a DINOv2 backbone of timm to the original's names; anything else is not changed.

    timm has no mask token, so it becomes 0 here and is never read. With registers, timm adds the position of CLS to
    the CLS token, and has positions only for patches.
    """
    if "mask_token" in state or not {"cls_token", "pos_embed", "blocks.0.ls1.gamma"} <= state.keys():
        return state
    hidden, features = (state.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    is_swiglu = hidden is not None and features is not None and hidden.shape[0] == 2 * features.shape[-1]
    names = {"reg_token": "register_tokens"}
    converted = {}
    for name, tensor in state.items():
        if is_swiglu:
            name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        converted[names.get(name, name)] = tensor
    converted["mask_token"] = torch.zeros_like(state["cls_token"][0])
    if "reg_token" in state:
        of_cls = torch.zeros_like(state["pos_embed"][:, :1])
        converted["pos_embed"] = torch.cat([of_cls, state["pos_embed"]], dim=1)
    return converted


def backbone_to_original(state: State) -> State:
    """Rename a backbone from our names to the original's, without chunked blocks."""
    outside = {ours: original for original, ours in OUTSIDE_THE_BLOCKS.items()}
    in_a_block = {ours: original for original, ours in IN_A_BLOCK.items()}
    converted = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if block is None:
            converted[outside[name]] = tensor
            continue
        prefix, rest = f"blocks.{block[1]}", block[2]
        module, _, kind = rest.rpartition(".")
        if module == QKV[0]:
            parts = [state[f"encoder.layer.{block[1]}.{ours}.{kind}"] for ours in QKV]
            converted[f"{prefix}.attn.qkv.{kind}"] = torch.cat(parts)
        elif module not in QKV:
            converted[f"{prefix}.{replace_beginning(rest, in_a_block)}"] = tensor
    return converted


def unchunk_blocks(state: State) -> State:
    """
    `blocks.{chunk}.{block}.` to `blocks.{block}.`; names without a chunk stay.

    Raises:
        `ValueError`: two chunks have a tensor with the same name.
    """
    unchunked = {}
    for name, tensor in state.items():
        plain = re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name)
        if plain in unchunked:
            raise ValueError(f"two chunks of blocks hold `{plain}`, but each block belongs to one chunk.")
        unchunked[plain] = tensor
    return unchunked


def chunk_blocks(state: State, block_chunks: int) -> State:
    """
    The inverse of `unchunk_blocks`, like the original's option of that name.

    A chunk has `depth // block_chunks` blocks, so there are more than `block_chunks` chunks if the division has a
    remainder.

    Args:
        block_chunks: 0 for no chunks.

    Raises:
        `ValueError`: `block_chunks` is negative or above the number of blocks.
    """
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if not 0 <= block_chunks <= depth:
        raise ValueError(
            f"--block_chunks is {block_chunks}; it must be from 0 (no chunks) to {depth}, the number of blocks."
        )
    if block_chunks == 0:
        return state
    size = depth // block_chunks
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda block: f"blocks.{int(block[1]) // size}.{block[1]}.", name): tensor
        for name, tensor in state.items()
    }


def projection_head_from_original(state: State) -> State:
    """Rename a `DINOHead` to our names. Only an MLP of one layer differs, which the original does not number."""
    return {re.sub(r"^mlp\.(?=weight|bias)", "mlp.0.", name): tensor for name, tensor in state.items()}


def projection_head_to_original(state: State) -> State:
    """The inverse of `projection_head_from_original`."""
    if any(name.startswith("mlp.2.") for name in state):
        return state
    return {name.replace("mlp.0.", "mlp."): tensor for name, tensor in state.items()}
