"""
What is compared with the original network: sizes, inputs and weights that both sides make for themselves, and how an
output is reduced to a few numbers.

Weights and images come from numpy's `RandomState`, whose numbers no later version changes. The waves that fill the
network of appendix A of the specification would give matrices of rank 2, and rounding of 3e-4 at full width.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from .original_names import fused_parameters


# Widths of the released models with fewer blocks, and a narrow network for what does not depend on the width.
ARCHITECTURES = {
    "small": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 2},
    "large": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 2},
    "giant": {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 1, "use_swiglu_ffn": True},
    "narrow": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
    "deep": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 5},
}
FAMILIES = {
    "plain": {"num_register_tokens": 0, "interpolate_offset": 0.1, "interpolate_antialias": False},
    "registers": {"num_register_tokens": 4, "interpolate_offset": 0.0, "interpolate_antialias": True},
}
INTERMEDIATE = {
    "last": {"n": 1},
    "last_three": {"n": 3},
    "chosen": {"n": [3, 0, 2]},
    "reshaped": {"n": 2, "reshape": True},
    "with_class_token": {"n": 2, "return_class_token": True},
    "before_norm": {"n": [1, 4], "norm": False},
    "everything": {"n": [0, 3], "reshape": True, "return_class_token": True, "norm": False},
}


@dataclass(frozen=True)
class Case:
    """One network on one batch of images, `height` and `width` in pixels."""

    architecture: str
    family: str
    height: int
    width: int
    batch_size: int = 2
    masked: bool = False
    # Factor on everything before the first block; when it is small, the epsilon of the first norm shows.
    embeddings_scale: float = 1.0
    # Keyword arguments of `get_intermediate_layers`; `None`: the forward pass.
    intermediate: dict | None = None
    # Fields of the configuration that differ from those of architecture and family.
    fields: dict = field(default_factory=dict)

    @property
    def config(self) -> dict:
        """Keyword arguments of `DINOv2Config`."""
        sizes = {"image_size": 518, "patch_size": 14}
        return sizes | ARCHITECTURES[self.architecture] | FAMILIES[self.family] | self.fields

    def images(self) -> torch.Tensor:
        """`(B, 3, height, width)`."""
        return random_values("images", (self.batch_size, 3, self.height, self.width))

    def mask(self) -> torch.Tensor | None:
        """`(B, N)` booleans, a third of them true, or `None`."""
        if not self.masked:
            return None
        num_patches = self.height * self.width // self.config["patch_size"] ** 2
        return random_values("mask", (self.batch_size, num_patches)) > 1 / 3


def all_cases() -> dict[str, Case]:
    cases = {}
    for family in FAMILIES:
        for architecture in ("small", "base", "large", "giant"):
            cases[f"{architecture}-{family}-224"] = Case(architecture, family, 224, 224)
        for height, width, batch_size in ((518, 518, 1), (98, 98, 2), (224, 98, 2), (70, 518, 1)):
            cases[f"small-{family}-{height}x{width}"] = Case("small", family, height, width, batch_size)
        for architecture, height, width in (("small", 98, 98), ("narrow", 56, 126), ("narrow", 518, 518)):
            cases[f"{architecture}-{family}-{height}x{width}-masked"] = Case(
                architecture, family, height, width, masked=True
            )
        for name, arguments in INTERMEDIATE.items():
            cases[f"deep-{family}-{name}"] = Case("deep", family, 70, 98, intermediate=arguments)
        cases[f"small-{family}-last_two"] = Case(
            "small", family, 98, 224, intermediate={"n": 2, "return_class_token": True}
        )
        for side in range(3, 41):
            cases[f"narrow-{family}-grid-{side}x{side}"] = Case("narrow", family, 14 * side, 14 * side, 1)
            other = 43 - side
            cases[f"narrow-{family}-grid-{side}x{other}"] = Case("narrow", family, 14 * side, 14 * other, 1)
        # Stored for 224 px, as pretraining stores it, in patches of 14 and of 16.
        for patch_size in (14, 16):
            for grid in (7, 14, 16, 37):
                cases[f"narrow-{family}-patch-{patch_size}-grid-{grid}"] = Case(
                    "narrow",
                    family,
                    grid * patch_size,
                    grid * patch_size,
                    1,
                    fields={"image_size": 224, "patch_size": patch_size},
                )
        cases[f"narrow-{family}-quiet"] = Case("narrow", family, 56, 126, embeddings_scale=0.03)
        # As many patches as are stored, in another shape.
        cases[f"narrow-{family}-same-count"] = Case("narrow", family, 28, 112, 1, fields={"image_size": 56})
    for offset, antialias in ((0.1, True), (0.0, False)):
        for side in (98, 224, 560):
            fields = {"interpolate_offset": offset, "interpolate_antialias": antialias}
            cases[f"narrow-offset-{offset}-antialias-{antialias}-{side}".lower()] = Case(
                "narrow", "plain", side, side, 1, fields=fields
            )
    return cases


def random_values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Float32 values of mean 0 and variance 1, uniform in +-sqrt(3), the same for a name everywhere."""
    uniform = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    return torch.from_numpy((3**0.5 * uniform).astype(np.float32))


@torch.no_grad()
def fill_with_random_values(network: nn.Module, embeddings_scale: float) -> None:
    """
    Fill ours or the original with the same weights: activations of size 1 at every width, attention that is neither
    uniform nor on one token (logits of standard deviation 2), and a different scale and shift for every channel.
    """
    for name, parameters in fused_parameters(network).items():
        shape = (sum(len(parameter) for parameter in parameters), *parameters[0].shape[1:])
        values = random_values(name, shape)
        if "gamma" in name:
            values = 0.5 + 0.1 * values
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values = 0.2 * values
        elif name.endswith("weight"):
            values = values * (1.4 if "qkv" in name else 1.0) * values[0].numel() ** -0.5
        else:  # CLS, mask token, registers, positions
            values = 0.5 * values
        if not name.startswith(("blocks.", "norm.")):
            values = embeddings_scale * values
        for parameter, chunk in zip(parameters, values.chunk(len(parameters)), strict=True):
            parameter.copy_(chunk)


def fingerprint(values: torch.Tensor) -> list[float]:
    """
    Five elements from first to last, mean, mean absolute value and two projections on waves of a tensor of any shape.

    The projections see every element and its place; they are divided by the root of the count, so that independent
    rounding errors of 1e-6 move them by 1e-6.
    """
    flat = values.detach().double().flatten()
    place = torch.arange(len(flat), dtype=torch.float64)
    chosen = flat[torch.linspace(0, len(flat) - 1, 5).long()].tolist()
    waves = [(flat * torch.sin(frequency * place)).sum().item() / len(flat) ** 0.5 for frequency in (0.11, 1.3)]
    return [*chosen, flat.mean().item(), flat.abs().mean().item(), *waves]


def fingerprints(case: Case, forward: Callable, intermediate: Callable) -> dict[str, list[float]]:
    """
    The numbers of a case.

    Args:
        forward: `(images, mask)` to named tensors: `embeddings` (input of the first block), `x_prenorm`,
            `class_token`, `registers` and `patches`.
        intermediate: `get_intermediate_layers` of the network.
    """
    with torch.no_grad():
        if case.intermediate is None:
            named = forward(case.images(), case.mask())
            return {name: fingerprint(values) for name, values in named.items() if values.numel()}
        layers = intermediate(case.images(), **case.intermediate)
    named = {}
    for index, layer in enumerate(layers):
        if case.intermediate.get("return_class_token", False):
            named[f"class_token_{index}"] = fingerprint(layer[1])
            layer = layer[0]
        named[f"patches_{index}_" + "x".join(map(str, layer.shape))] = fingerprint(layer)
    return named


def largest_difference(ours: dict[str, list[float]], others: dict[str, list[float]]) -> float:
    """Of any number of a case; not a number when either holds one that is not."""
    assert list(ours) == list(others)  # the names hold the shapes of intermediate layers
    differences = [abs(a - b) for part in ours for a, b in zip(ours[part], others[part], strict=True)]
    return torch.tensor(differences, dtype=torch.float64).max().item()
