"""From a folder on disk to the model of this package that it holds, to be exported to another folder."""

import json
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from ..models import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from .new_output import check_folder


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
        folder: holds config.json, whose `architectures` chooses the class, and safetensors weights.

    Returns:
        The model in evaluation mode, with every weight from the file and in the file's dtype.

    Raises:
        `ValueError`: there is no such folder or file, it holds another kind of model or one to be pretrained, or its
            weights are damaged or not those of that model.
    """
    folder = Path(folder)
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
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers would report as a table is raised below as a sentence
    try:
        model, found = model_class.from_pretrained(
            folder,
            config=config,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The weights of {folder} cannot be read, a file is damaged or missing ({reason}); copy or download them"
            " again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    refuse_other_weights(found, values, model, folder)
    return model


def check_export_folders(folder: Path, output_dir: Path, overwrite: bool) -> None:
    """`ValueError` when `output_dir` may not be written, or would replace the `folder` that is read."""
    if folder.resolve().is_relative_to(output_dir.resolve()):
        raise ValueError(f"`output_dir` is {output_dir}, which would replace the folder that is read, {folder}.")
    check_folder(output_dir, overwrite)


def read_json(path: Path, needed: str) -> dict:
    """The object in a JSON file; `ValueError` when there is no such file, or something else in it."""
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"There is no {path.name} in {path.parent}, but {needed} is needed.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not JSON, but {needed} is needed.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, but a JSON object is needed.")
    return values


def class_of(architectures: list[str] | None, folder: Path) -> type[PreTrainedModel]:
    """Our class for the `architectures` of a config.json, of our own or of transformers' DINOv2 classes."""
    name = architectures[0] if architectures else None
    if name not in MODEL_CLASSES:
        raise ValueError(
            f"`architectures` in the config.json of {folder} is {architectures}, but one of"
            f" {', '.join(MODEL_CLASSES)} is needed."
        )
    return MODEL_CLASSES[name]


def refuse_other_weights(found: dict, values: dict, model: PreTrainedModel, folder: Path) -> None:
    """Raise `ValueError` when a file's weights are not exactly the model's; `values` are those of config.json."""
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    if values.get("use_mask_token") is False:  # stock models may leave it out, and only pretraining reads it
        missing = {name for name in missing if not name.endswith("embeddings.mask_token")}
    if values.get("num_register_tokens") == 0:  # stock models with 0 registers hold a tensor without numbers
        unexpected = {name for name in unexpected if not name.endswith("embeddings.register_tokens")}
    kind = type(model).__name__
    if found["mismatched_keys"]:
        name, in_file, in_model = min(found["mismatched_keys"])
        raise ValueError(
            f"`{name}` in the weights of {folder} has shape {tuple(in_file)}, but its config.json describes a {kind}"
            f" with {tuple(in_model)}."
        )
    if missing:
        raise ValueError(f"The weights of {folder} lack {first_of(missing)}, which a {kind} needs.")
    if unexpected:
        raise ValueError(f"The weights of {folder} hold {first_of(unexpected)}, which a {kind} does not have.")


def first_of(names: set[str]) -> str:
    """The first name and how many more there are."""
    others = len(names) - 1
    return f"`{min(names)}`" + (f" and {others} other{'s' if others > 1 else ''}" if others else "")
