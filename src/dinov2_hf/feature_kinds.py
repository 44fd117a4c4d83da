"""The feature of an image: which tokens of a vision transformer it consists of, and this rule in words.

| kind | feature of one image | used by the paper (section 7) for |
|---|---|---|
| `cls` | the CLS token | k-NN, logistic regression, retrieval |
| `mean_patch` | the mean over the patch tokens | with `cls`, the classification head |
| `patch_grid` | the patch tokens as a grid | segmentation, depth, matching |
| `last_layers` | the CLS tokens of the last blocks, concatenated | the linear probe |
| `last_layers_and_mean_patch` | `last_layers` and `mean_patch`, concatenated | the linear probe |

No kind contains register tokens. All are taken after the final norm, if the model has one.

The number of tokens is checked against the grid of patches, so that no patch is taken for a CLS token. If a model has
no final-normed CLS token, `cls` is its own `pooler_output`. If it has no such output either, `cls` is refused:

| model | `cls` |
|---|---|
| ViT, DeiT, DINOv2, DINOv3, MSN | the CLS token after the final norm |
| CLIP and similar models, whose tokens come before the final norm | pooled output: the CLS token after that norm |
| BEiT with mean pooling | pooled output: the normed mean of the patches |
| SigLIP, Swin, Hiera, ConvNeXt, ResNet: no CLS token | pooled output |
| I-JEPA: no CLS token and no pooled output | refused |
| ViTMAE, which hides patches at random | refused |

Shapes: `B` images in a batch, `D` hidden size, `h` x `w` patches, `R` register tokens, `T` tokens in the order CLS,
registers, patches row by row.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


CLS_RULE = "the CLS token after the final norm"
ONE_TOKEN_RULE = "the one token of the output"


@dataclass(frozen=True)
class FeatureKind:
    """A kind of features by its name, with the number of blocks that it reads.

    `small in large` says whether features of the kind `large` contain those of `small` as adjacent columns, see
    `columns`.

    Raises:
        ValueError: there is no such kind.
    """

    name: str
    num_layers: int = 1

    def __post_init__(self) -> None:
        if self.name not in FEATURE_FUNCTIONS:
            raise ValueError(
                f"kind={self.name!r} is not a kind of features; there are {', '.join(map(repr, FEATURE_FUNCTIONS))}."
            )
        if self.name not in KINDS_OF_LAST_LAYERS:
            object.__setattr__(self, "num_layers", int(self.name == "cls"))

    @property
    def has_mean_patch(self) -> bool:
        return self.name in ("mean_patch", "last_layers_and_mean_patch")

    @property
    def num_tokens(self) -> int:
        """Number of tokens in a feature, each of the hidden size; 0 for a grid."""
        return self.num_layers + self.has_mean_patch

    def __contains__(self, other: "FeatureKind") -> bool:
        if "patch_grid" in (self.name, other.name):
            return self == other
        return self.num_layers >= other.num_layers and self.has_mean_patch >= other.has_mean_patch

    def columns(self, other: "FeatureKind", width: int) -> slice:
        """The columns that are the features of another kind, in features of this kind with `width` columns."""
        hidden_size = width // self.num_tokens
        start = self.num_layers - other.num_layers
        return slice(start * hidden_size, (self.num_layers + other.has_mean_patch) * hidden_size)


def image_features(model: nn.Module, pixel_values: Tensor, kind: str = "cls", num_layers: int = 4) -> Tensor:
    """Features of a batch of images, of any model in the tables above.

    Args:
        model: its output has `last_hidden_state` or `pooler_output`; its `config` has `patch_size` (pixels, or a pair
            of height and width) and, where the model has registers, `num_register_tokens`. The last two kinds need
            `get_intermediate_layers`, as `DINOv2Model` has it, or hidden states and a final norm called `layernorm` or
            `norm`.
        pixel_values: (B, channels, height, width), on the device of the model.
        kind: the features are (B, D), except for "patch_grid": (B, h, w, D), where `h` and `w` are rounded down;
            "last_layers": (B, num_layers * D), from the shallowest block to the last; and
            "last_layers_and_mean_patch": (B, (num_layers + 1) * D).
        num_layers: blocks of the last two; the paper takes 1 or 4.

    Returns:
        Features in the dtype of the model's output. Gradients flow; mode and device of the model are not changed.

    Raises:
        ValueError: there is no such kind; the model has fewer blocks, or does not say how many; or it cannot give this
            kind, because it does not have the needed tokens.
    """
    return take_features(model, pixel_values, FeatureKind(kind, num_layers))[0]


def take_features(model: nn.Module, pixel_values: Tensor, kind: FeatureKind) -> tuple[Tensor, str]:
    """`image_features`, and in words how they were taken."""
    options = (kind.num_layers,) if kind.name in KINDS_OF_LAST_LAYERS else ()
    # The cast is not in the list of functions: the help of commands reads that list, and imports no torch.
    function = cast(Callable[..., tuple[Tensor, str]], FEATURE_FUNCTIONS[kind.name])
    return function(model, pixel_values, *options)


def _cls(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, str]:
    output = model(pixel_values)
    tokens, pooled = (getattr(output, name, None) for name in ("last_hidden_state", "pooler_output"))
    if pooled is None:
        tokens = _tokens(model, output)
    if tokens is None or tokens.ndim != 3:
        reason = "there are no tokens"
    elif tokens.shape[1] == 1:
        return tokens[:, 0], ONE_TOKEN_RULE
    else:
        why = _why_no_cls_token(model, tokens, pixel_values)
        if why is None and final_norm(model) is not None:
            return tokens[:, 0], CLS_RULE
        if why is None and pooled is None:
            return tokens[:, 0], "the CLS token as the model gives it, without a known final norm"
        reason = why or "its CLS token has not passed the final norm"
    if pooled is None:
        raise ValueError(
            f"the feature 'cls' cannot be taken from a {type(model).__name__}, as {reason}; it has no pooled output"
            " either. Use 'mean_patch', or another model."
        )
    # (B, D), or (B, D, 1, 1) for a convolutional network.
    return pooled.flatten(1), f"the pooled output of {type(model).__name__}, as {reason}"


def _mean_patch(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, str]:
    grid, rule = _patch_grid(model, pixel_values)
    return grid.mean(dim=(1, 2)), f"the mean of {rule}"


def _patch_grid(model: nn.Module, pixel_values: Tensor) -> tuple[Tensor, str]:
    patch_size_of(model)  # raises before the forward pass
    grid = _patches(model, _tokens(model, model(pixel_values)), pixel_values)
    norm = "as the model gives them" if final_norm(model) is None else "after the final norm"
    return grid, f"the patch tokens {norm}"


def _last_layers(model: nn.Module, pixel_values: Tensor, num_layers: int) -> tuple[Tensor, str]:
    cls_tokens = [cls for _, cls in _last_tokens(model, pixel_values, num_layers)]
    return torch.cat(cls_tokens, dim=-1), f"the CLS tokens of the last {num_layers} blocks after the final norm"


def _last_layers_and_mean_patch(model: nn.Module, pixel_values: Tensor, num_layers: int) -> tuple[Tensor, str]:
    tokens = _last_tokens(model, pixel_values, num_layers)
    features = torch.cat([*(cls for _, cls in tokens), tokens[-1][0].mean(dim=1)], dim=-1)
    return features, f"the CLS tokens of the last {num_layers} blocks and the mean patch after the final norm"


def _last_tokens(model: nn.Module, pixel_values: Tensor, num_layers: int) -> list[tuple[Tensor, Tensor]]:
    depth = num_blocks(model)
    if not 1 <= num_layers <= depth:
        raise ValueError(f"num_layers is {num_layers}, but must be from 1 to the {depth} blocks of the model.")
    return block_tokens(model, pixel_values, range(depth - num_layers, depth), norm=True)


def num_blocks(model: nn.Module) -> int:
    """The number of blocks. `ValueError` if the model does not say it."""
    depth = _config_field(model, "num_hidden_layers")
    if depth is None:
        raise ValueError(
            f"the model ({type(model).__name__}) has no config.num_hidden_layers, which is needed to know its last"
            " blocks."
        )
    return depth


def block_tokens(
    model: nn.Module, pixel_values: Tensor, blocks: Sequence[int], *, norm: bool
) -> list[tuple[Tensor, Tensor]]:
    """Patches (B, h * w, D), row by row, and CLS token (B, D) after some blocks.

    Args:
        model: as in `image_features`.
        pixel_values: as in `image_features`.
        blocks: 0-based, ascending.
        norm: whether to apply the final norm, as to the tokens of the last block.

    Raises:
        ValueError: the model has neither `get_intermediate_layers` nor hidden states and a final norm, or it has no
            CLS token.
    """
    # Keeps the tokens of these blocks only; all hidden states of a ViT-L, 64 images at 518 pixels, are 9 GB.
    if callable(intermediate := getattr(model, "get_intermediate_layers", None)):
        return list(intermediate(pixel_values, n=list(blocks), return_class_token=True, norm=norm))
    layernorm = final_norm(model) if norm else nn.Identity()
    if layernorm is None:
        raise ValueError(
            f"model ({type(model).__name__}) has no get_intermediate_layers and no final norm called layernorm or "
            "norm, one of which is needed for the features of its last blocks."
        )
    output = model(pixel_values, output_hidden_states=True)
    last = _tokens(model, output)
    reason = _why_no_cls_token(model, last, pixel_values)
    if reason is not None:
        raise ValueError(
            f"the CLS tokens of the last blocks cannot be taken from a {type(model).__name__}, as {reason}."
        )
    found, others = [], _num_other_tokens(model)
    for block in blocks:
        tokens = output.hidden_states[block - num_blocks(model)]  # from the end: some count the embeddings, some not
        if norm:  # whether the last hidden state is already normed differs between models
            tokens = last if block == num_blocks(model) - 1 else layernorm(tokens)
        found.append((tokens[:, others:], tokens[:, 0]))
    return found


FEATURE_FUNCTIONS = {
    "cls": _cls,
    "mean_patch": _mean_patch,
    "patch_grid": _patch_grid,
    "last_layers": _last_layers,
    "last_layers_and_mean_patch": _last_layers_and_mean_patch,
}
KINDS_OF_LAST_LAYERS = ("last_layers", "last_layers_and_mean_patch")


def vision_part(model: nn.Module) -> nn.Module:
    """The part of a model that processes images: for a model of images and texts, such as CLIP, its `vision_model`.

    Raises:
        ValueError: the network needs more inputs than `pixel_values`.
    """
    part = getattr(model, "vision_model", None)
    if _config_field(model, "vision_config") is not None and isinstance(part, nn.Module):
        model = part
    parameters = list(inspect.signature(model.forward).parameters.values())
    needed = [
        parameter.name
        for parameter in parameters[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise ValueError(
            f"model is a {type(model).__name__}, which needs {', '.join(needed)} besides the pixels; use a model that"
            " takes only images."
        )
    return model


def final_norm(model: nn.Module) -> nn.Module | None:
    """The norm that `last_hidden_state` has gone through: `layernorm` or `norm` of the model, if it is one."""
    norm = getattr(model, "layernorm", None) or getattr(model, "norm", None)
    return None if isinstance(norm, nn.Identity) else norm


def patch_size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width of a patch in pixels, from `config.patch_size`; `ValueError` if the model has none."""
    patch_size = _config_field(model, "patch_size")
    if patch_size is None:
        raise ValueError("model has no config.patch_size, which is needed to know the grid of its patch tokens.")
    return (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)


def _tokens(model: nn.Module, output: Any) -> Tensor:
    """`last_hidden_state` (B, T, D) of a model's output."""
    hidden_state = getattr(output, "last_hidden_state", None)
    if hidden_state is None:
        raise ValueError(
            f"model ({type(model).__name__}) gives no last_hidden_state: a vision transformer without a head, as "
            "AutoModel loads it, is needed."
        )
    if hidden_state.ndim != 3:
        raise ValueError(
            f"model gives a last_hidden_state of shape {tuple(hidden_state.shape)}, but a vision transformer's "
            "(images, tokens, hidden size) is needed."
        )
    return hidden_state


def _patches(model: nn.Module, tokens: Tensor, pixel_values: Tensor) -> Tensor:
    """The patches (B, h, w, D) of all tokens (B, T, D), checked against the size of the images."""
    grid = _grid(model, pixel_values)
    others = tokens.shape[1] - grid[0] * grid[1]
    if others not in (0, _num_other_tokens(model)):
        reason = _miscount(model, tokens, pixel_values)
        raise ValueError(f"the grid of patches cannot be taken from a {type(model).__name__}, as {reason}.")
    return tokens[:, others:].unflatten(1, grid)


def _why_no_cls_token(model: nn.Module, tokens: Tensor, pixel_values: Tensor) -> str | None:
    """None if the first token is a CLS token; otherwise why it is not, or why that cannot be known."""
    if _config_field(model, "patch_size") is None:
        return "it has no config.patch_size, so its tokens cannot be counted"
    grid = _grid(model, pixel_values)
    others = tokens.shape[1] - grid[0] * grid[1]
    if others == _num_other_tokens(model):
        return None
    return "it has only patch tokens" if others == 0 else _miscount(model, tokens, pixel_values)


def _grid(model: nn.Module, pixel_values: Tensor) -> tuple[int, int]:
    patch_height, patch_width = patch_size_of(model)
    return pixel_values.shape[-2] // patch_height, pixel_values.shape[-1] // patch_width


def _num_other_tokens(model: nn.Module) -> int:
    """CLS, registers and the distillation token of DeiT."""
    distilled = hasattr(getattr(model, "embeddings", None), "distillation_token")
    return 1 + (_config_field(model, "num_register_tokens") or 0) + distilled


def _miscount(model: nn.Module, tokens: Tensor, pixel_values: Tensor) -> str:
    grid, others = _grid(model, pixel_values), _num_other_tokens(model)
    height, width = pixel_values.shape[-2:]
    patch_height, patch_width = patch_size_of(model)
    return (
        f"it gives {tokens.shape[1]} tokens for an image of {height} x {width} pixels, but {others} before the "
        f"patches (CLS and others) and {grid[0]} x {grid[1]} patches of {patch_height} x {patch_width} pixels are "
        f"{others + grid[0] * grid[1]}"
    )


def _config_field(model: nn.Module, field: str) -> Any:
    return getattr(getattr(model, "config", None), field, None)
