"""
Writes `golden_backbone.json` with the numbers of the original network.

    python -m tests.parity.write_backbone_golden <clone of github.com/facebookresearch/dinov2>

Refuses a case in which float32 differs from float64 by more than 3e-6, or in which the tokens hardly differ: such
numbers could not tell a right network from a wrong one at 1e-5.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from .backbone_cases import Case, all_cases, fill_with_random_values, fingerprints, largest_difference


GOLDEN = Path(__file__).with_name("golden_backbone.json")


def build_original(case: Case) -> nn.Module:
    """The original's network, unchunked."""
    from dinov2.layers import MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer

    config = case.config
    network = DinoVisionTransformer(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        ffn_layer="swiglufused" if config.get("use_swiglu_ffn") else "mlp",
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention),
        init_values=1.0,
        block_chunks=0,
        num_register_tokens=config["num_register_tokens"],
        interpolate_offset=config["interpolate_offset"],
        interpolate_antialias=config["interpolate_antialias"],
    )
    fill_with_random_values(network, case.embeddings_scale)
    return network.eval()


def original_fingerprints(case: Case, network: nn.Module, dtype: torch.dtype) -> dict[str, list[float]]:
    network = network.to(dtype)

    def forward(images: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        images = images.to(dtype)
        outputs = network.forward_features(images, mask)
        patches = outputs["x_norm_patchtokens"]
        if patches.std(dim=1).mean() < 0.3 or patches.std(dim=2).mean() < 0.3:
            raise ValueError(f"{case}: the patches hardly differ.")
        return {
            "embeddings": network.prepare_tokens_with_masks(images, mask),
            "x_prenorm": outputs["x_prenorm"],
            "class_token": outputs["x_norm_clstoken"],
            "registers": outputs["x_norm_regtokens"],
            "patches": patches,
        }

    def intermediate(images: torch.Tensor, **arguments):
        return network.get_intermediate_layers(images.to(dtype), **arguments)

    return fingerprints(case, forward, intermediate)


def main() -> None:
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "dinov2").is_dir():
        sys.exit(__doc__)
    clone = Path(sys.argv[1])
    os.environ["XFORMERS_DISABLED"] = "1"
    sys.path.insert(0, str(clone))
    commit = subprocess.check_output(["git", "-C", str(clone), "rev-parse", "HEAD"], text=True).strip()

    golden, largest = {}, 0.0
    for name, case in tqdm(all_cases().items(), desc="cases", disable=not sys.stderr.isatty()):
        network = build_original(case)
        single, double = (original_fingerprints(case, network, dtype) for dtype in (torch.float32, torch.float64))
        rounding = largest_difference(single, double)
        if not rounding <= 3e-6:
            sys.exit(f"{name}: float32 rounds by {rounding:.1e}, which is too much for a comparison at 1e-5.")
        largest = max(largest, rounding)
        golden[name] = {part: [round(value, 7) for value in values] for part, values in single.items()}
    head = {
        "repository": "https://github.com/facebookresearch/dinov2",
        "commit": commit,
        "largest_difference_of_float32_from_float64": float(f"{largest:.1e}"),
    }
    lines = [f"  {json.dumps(name)}: {json.dumps(parts)}" for name, parts in golden.items()]
    text = json.dumps(head, indent=1)[:-2] + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n"
    temporary = GOLDEN.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(GOLDEN)
    sys.stdout.write(f"{len(golden)} cases, float32 within {largest:.1e} of float64: {GOLDEN}\n")


if __name__ == "__main__":
    main()
