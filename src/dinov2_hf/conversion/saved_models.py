"""Backbones and pretraining models to be converted, read from folders or the Hub."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..models import DINOv2Model
from .model_folder import load_model_folder
from .original_checkpoint import some


def load_backbone(source: str | Path) -> PreTrainedModel:
    """
    The backbone of a folder of this package or of transformers' own DINOv2 classes, or of an id on the Hub.

    Raises:
        `ValueError`: there is none, or its weights are damaged or not whole.
    """
    if Path(source).is_dir():
        return load_model_folder(source).base_model
    return load_whole(DINOv2Model, source)


def load_whole(model_class: type[PreTrainedModel], source: str | Path, subfolder: str = "") -> PreTrainedModel:
    """
    `from_pretrained` in the number type that was saved; every tensor of the model must be there.

    Raises:
        `ValueError`: as `load_backbone`.
    """
    try:
        model, report = model_class.from_pretrained(
            source, subfolder=subfolder, dtype="auto", output_loading_info=True
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"No {model_class.__name__} can be read from {source}: {reason}.") from None
    if report["missing_keys"]:
        raise ValueError(f"The weights of {source} lack {some(report['missing_keys'])}, of a {model_class.__name__}.")
    return model
