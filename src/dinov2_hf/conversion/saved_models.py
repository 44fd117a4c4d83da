"""Backbones, of ours and of others, read from folders or the Hub."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel, ViTModel
from transformers.configuration_utils import PreTrainedConfig

from ..model_source import find_model
from ..models import DINOv2Model
from .loaded_weights import load_whole, load_with_missing
from .model_folder import load_model_folder


CLASS_OF_TYPE = {
    "dinov2": DINOv2Model,
    "dinov2_with_registers": DINOv2Model,
    "vit_mae": ViTModel,  # ViTMAEModel hides patches at random; the same weights here see all of them
}


def load_backbone(source: str | Path) -> PreTrainedModel:
    """
    The backbone of a folder of this package or of transformers' own DINOv2 classes, or of an id on the Hub.

    Raises:
        `ValueError`: there is none, or its weights are damaged or not whole.
    """
    source = find_model(source)
    if Path(source).is_dir():
        return load_model_folder(source).base_model
    return load_whole(DINOv2Model, source)


def load_network(source: str | Path, **options: Any) -> PreTrainedModel:
    """
    The network, without a head, of any vision model that `AutoModel` loads.

    Stock `dinov2` checkpoints become a `DINOv2Model`, with the features of the original at every size of image, and
    ViTMAE becomes a `ViTModel`. A pooler that was never trained is `None` afterwards. A mask token that is not in the
    file is never read.

    Args:
        source: what `model_source.find_model` takes.
        options: of `from_pretrained`, such as `dtype`.

    Raises:
        `ValueError`: one sentence. There is no such model, AutoModel has no class for it, or its weights are damaged,
            missing, of another shape or not finite.
    """
    source = find_model(source)
    model, missing = load_with_missing(
        CLASS_OF_TYPE.get(read_config(source).model_type, AutoModel),
        source,
        may_be_missing=lambda name: "pooler" in name or name.endswith("embeddings.mask_token"),
        **options,
    )
    if any("pooler" in name for name in missing):
        model.pooler = None
    return model


def read_config(source: str | Path) -> PreTrainedConfig:
    """
    The configuration of a model folder or Hub id.

    Raises:
        `ValueError`: one sentence. There is none, or transformers does not know its kind.
    """
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        where = "" if Path(source).is_dir() else " (no folder of this machine, so it was taken for an id on the Hub)"
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{source}{where} has no configuration that transformers can read: {reason[:300]}"
            f"{'...' if len(reason) > 300 else ''}."
        ) from error
