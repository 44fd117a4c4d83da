"""The models of `torch.hub.load` of this repository: the released architectures, with or without weights."""

from pathlib import Path

from ..models import DINOv2Config, DINOv2ForImageClassification, DINOv2Model
from .loaded_weights import load_whole
from .original.from_original import load_original
from .original_interface import OriginalBackbone, OriginalClassifier
from .saved_models import load_backbone


# Name in an entry point: name on the Hub, and what differs from DINOv2Config's defaults.
SIZES = {
    "vits": ("small", {"hidden_size": 384, "num_attention_heads": 6}),
    "vitb": ("base", {}),
    "vitl": ("large", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}),
    "vitg": (
        "giant",
        {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
    ),
}


def released_config(size: str, registers: bool, **fields) -> DINOv2Config:
    """The configuration of a released backbone; `fields` override it."""
    values = {"image_size": 518, **SIZES[size][1]}
    if registers:
        values |= {"num_register_tokens": 4, "interpolate_offset": 0.0, "interpolate_antialias": True}
    return DINOv2Config(**values | fields)


def hub_id(size: str, registers: bool) -> str:
    """The repository of a released backbone on the Hugging Face Hub."""
    return f"facebook/dinov2-{'with-registers-' if registers else ''}{SIZES[size][0]}"


def backbone(
    size: str, registers: bool, *, pretrained: bool = True, weights: str | None = None, **fields
) -> OriginalBackbone:
    """
    A DINOv2 backbone, `(B, 3, H, W)` to CLS features `(B, D)`.

    Args:
        pretrained: load weights; otherwise the network has fresh weights.
        weights: what `model_source.find_model` takes: Hub id, model folder, `.pth` file of the original, ... `None`:
            those released on the Hugging Face Hub.
        fields: of `DINOv2Config`, for a network that is not pretrained.

    Raises:
        `ValueError`: `weights` cannot be read, are of another architecture, or come with `pretrained=False`.
    """
    expected = released_config(size, registers, **fields)
    if not pretrained:
        _refuse_weights(weights)
        return OriginalBackbone(DINOv2Model(expected)).eval()
    _refuse_fields(fields)
    source = weights if weights is not None else hub_id(size, registers)
    model = load_backbone(source)
    _check_architecture(model.config, expected, source)
    return OriginalBackbone(model).eval()


def linear_classifier(
    size: str,
    registers: bool,
    *,
    layers: int = 4,
    pretrained: bool = True,
    weights: str | None = None,
    backbone_weights: str | None = None,
    **fields,
) -> OriginalClassifier:
    """
    A linear ImageNet classifier on a DINOv2 backbone, `(B, 3, H, W)` to logits `(B, 1000)`.

    Args:
        layers: last blocks whose CLS tokens it reads, 1 or 4.
        pretrained: load weights; otherwise network and classifier have fresh weights.
        weights: Hub id or folder of a classifier, or the original's `.pth` file of the linear head. `None`: the one
            released on the Hugging Face Hub, which exists for `layers=1`.
        backbone_weights: for a file with only the head, its backbone: Hub id, model folder or `.pth` file. `None`:
            that on the Hub.
        fields: of `DINOv2Config`, for a network that is not pretrained.

    Raises:
        `ValueError`: `layers` is neither 1 nor 4, no such weights exist, or they are of another architecture.
    """
    if layers not in (1, 4):
        raise ValueError(f"`layers` is {layers}; it must be 1 or 4.")
    expected = released_config(size, registers, **{"classifier_num_layers": layers, "num_labels": 1000, **fields})
    if not pretrained:
        _refuse_weights(weights, backbone_weights)
        return OriginalClassifier(DINOv2ForImageClassification(expected)).eval()
    _refuse_fields(fields)
    if weights is None:
        if layers == 4:
            raise ValueError(
                "`layers` is 4, but on the Hub are only classifiers on 1 layer; set `weights` to the original's"
                f" dinov2_{size}14{'_reg4' if registers else ''}_linear4_head.pth, or `layers` to 1."
            )
        weights = f"{hub_id(size, registers)}-imagenet1k-1-layer"
    if Path(weights).is_file():
        backbone_weights = backbone_weights or hub_id(size, registers)
        model = load_original(weights, backbone=backbone_weights)
        if not isinstance(model, DINOv2ForImageClassification):
            raise ValueError(f"`weights` is {weights}, which holds a {type(model).__name__} and no linear classifier.")
    else:
        if backbone_weights is not None:
            raise ValueError(f"{weights} has a backbone of its own; leave `backbone_weights` out.")
        model = load_whole(DINOv2ForImageClassification, weights)
    _check_architecture(model.config, expected, weights, "classifier_num_layers", "classifier_use_patch_mean")
    return OriginalClassifier(model).eval()


def _refuse_weights(*weights: str | None) -> None:
    if any(value is not None for value in weights):
        raise ValueError("`pretrained` is False, which leaves no use for weights; leave one of them out.")


def _refuse_fields(fields: dict) -> None:
    if fields:
        raise ValueError(f"{', '.join(fields)} can be chosen with `pretrained=False` only; leave them out.")


def _check_architecture(config: DINOv2Config, expected: DINOv2Config, source: str, *more: str) -> None:
    names = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "num_register_tokens",
        "use_swiglu_ffn", *more,
    )  # fmt: skip
    for name in names:
        if getattr(config, name) != getattr(expected, name):
            raise ValueError(
                f"`{name}` of {source} is {getattr(config, name)}, but this entry point is for"
                f" {getattr(expected, name)}."
            )
