"""Names of the original implementation's parameters for a student or teacher of ours (spec, section 1.7 and 1.8)."""

import re

import torch
from torch import nn


def original_name(name: str) -> str:
    """The original's name of one of our parameters; `query` stands for the fused `qkv`."""
    replacements = [
        (r"embeddings\.(cls_token|mask_token|register_tokens)", r"\1"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"attention\.attention\.query", "attn.qkv"),
        (r"attention\.output\.dense", "attn.proj"),
        (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
        (r"mlp\.weights_in", "mlp.w12"),
        (r"mlp\.weights_out", "mlp.w3"),
        (r"(^|\.)layernorm\.", r"\1norm."),
    ]
    for pattern, replacement in replacements:
        name = re.sub(pattern, replacement, name)
    return name


def fused_parameters(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """
    Our parameters by the original's names; query, key and value stand together under the fused one, in that order.
    """
    parameters = dict(network.named_parameters())
    fused = {}
    for name, parameter in parameters.items():
        if ".attention.attention.key." in name or ".attention.attention.value." in name:
            continue
        siblings = [parameter]
        if ".attention.attention.query." in name:
            siblings += [parameters[name.replace("query", other)] for other in ("key", "value")]
        fused[original_name(name)] = siblings
    return fused


@torch.no_grad()
def fill_with_waves(network: nn.Module, phase: float, rename=lambda name: name) -> None:
    """
    The deterministic fill of the spec's appendix A: for the i-th parameter in alphabetical order of the original's
    names and flat index j, a function of `sin(0.1 (i + 1) + 0.37 j + phase)` in float64.

    `rename` changes the names before they are sorted (chunked blocks).
    """
    fused = {rename(name): parameters for name, parameters in fused_parameters(network).items()}
    for index, name in enumerate(sorted(fused)):
        parameters = fused[name]
        size = sum(parameter.numel() for parameter in parameters)
        wave = torch.sin(0.1 * (index + 1) + 0.37 * torch.arange(size, dtype=torch.float64) + phase)
        if "gamma" in name:
            values = 0.5 + 0.05 * wave
        elif name.endswith("weight_g") or ("norm" in name and name.endswith("weight")):
            values = 1 + 0.05 * wave
        elif parameters[0].ndim >= 2:
            values = 0.2 * wave
        else:
            values = 0.05 * wave
        for parameter, chunk in zip(parameters, values.chunk(len(parameters)), strict=True):
            parameter.copy_(chunk.view(parameter.shape))
