"""Loads the model of this package from a folder on disk, for an export to another folder."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..model_source import find_model_folder, read_json
from ..models import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from .loaded_weights import load_whole, load_with_missing


MODEL_CLASSES = {
    **{
        model_class.__name__: model_class
        for model_class in (
            DINOv2Model,
            DINOv2Backbone,
            DINOv2ForImageClassification,
            DINOv2ForSemanticSegmentation,
            DINOv2ForDepthEstimation,
        )
    },
    "Dinov2Model": DINOv2Model,
    "Dinov2Backbone": DINOv2Backbone,
    "Dinov2ForImageClassification": DINOv2ForImageClassification,
    "Dinov2WithRegistersModel": DINOv2Model,
    "Dinov2WithRegistersBackbone": DINOv2Backbone,
    "Dinov2WithRegistersForImageClassification": DINOv2ForImageClassification,
}


def load_model_folder(folder: str | Path) -> PreTrainedModel:
    """
    The model of a folder that `save_pretrained` of this package wrote, or of transformers' own DINOv2 classes.

    Args:
        folder: contains config.json, whose `architectures` gives the class, and safetensors weights; or a run's output
            folder, whose `model` is used.

    Returns:
        The model in evaluation mode, with every weight from the file and in the file's dtype.

    Raises:
        `ValueError`: there is no such folder or file, it contains another kind of model or a model for pretraining, or
            its weights are damaged or do not fit that model.
    """
    folder = find_model_folder(folder)
    values = read_json(folder / "config.json", "a model folder")
    try:
        config = DINOv2Config.from_pretrained(folder)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The config.json of {folder} does not describe a DINOv2 model: {reason}") from error
    model_class = class_of(values.get("architectures"), folder)
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        raise ValueError(
            f"{folder} has a config.json but neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; the weights"
            " are needed in that format."
        )
    # Stock models may leave out the mask token, which only pretraining reads, or have registers of size 0.
    no_mask_token, no_registers = values.get("use_mask_token") is False, values.get("num_register_tokens") == 0
    return load_with_missing(
        model_class,
        folder,
        config=config,
        use_safetensors=True,
        local_files_only=True,
        may_be_missing=lambda name: no_mask_token and name.endswith("embeddings.mask_token"),
        may_be_unexpected=lambda name: no_registers and name.endswith("embeddings.register_tokens"),
    )[0]


def saved_backbone(found: Path | str) -> PreTrainedModel:
    """
    The backbone of a folder of this package or of transformers' own DINOv2 classes, or of an id on the Hub.

    Raises:
        `ValueError`: as `load_model_folder`.
    """
    return load_model_folder(found).base_model if isinstance(found, Path) else load_whole(DINOv2Model, found)


def class_of(architectures: list[str] | None, folder: Path) -> type[PreTrainedModel]:
    """Our class for the `architectures` of a config.json, of our own or of transformers' DINOv2 classes."""
    name = architectures[0] if architectures else None
    if name not in MODEL_CLASSES:
        raise ValueError(
            f"`architectures` in the config.json of {folder} is {architectures}, but one of"
            f" {', '.join(MODEL_CLASSES)} is needed."
        )
    return MODEL_CLASSES[name]
