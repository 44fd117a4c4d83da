"""Loads backbones of this package and of others from folders or the Hub."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel, ViTModel
from transformers.configuration_utils import PreTrainedConfig

from ..model_source import find_model, is_other_layout
from ..models import DINOv2Model
from .loaded_weights import as_it_was_taken, load_with_missing
from .model_folder import saved_backbone
from .other_layouts import read_other_layout


# Otherwise transformers would ask at the terminal whether to run the Python code in a model folder.
DATA_ALONE = {"trust_remote_code": False}
# Pixels: as many squared are more than any image may have by default (`data.decoding.size_limits`).
MAX_SIDE = 16_384
CLASS_OF_TYPE = {
    "dinov2": DINOv2Model,
    "dinov2_with_registers": DINOv2Model,
    "vit_mae": ViTModel,  # ViTMAEModel hides patches at random; the same weights here see all of them
}


def load_backbone(source: str | Path) -> PreTrainedModel:
    """
    Load the DINOv2 backbone of any source that `model_source.find_model` takes.

    Raises:
        `ValueError`: there is none, or its weights are damaged or not whole.
    """
    found = find_model(source)
    return read_other_layout(found).backbone if is_other_layout(found) else saved_backbone(found)


def load_network(source: str | Path, **options: Any) -> PreTrainedModel:
    """
    Load the network, without a head, of any vision model that `AutoModel` loads.

    Stock `dinov2` checkpoints become a `DINOv2Model`, with the features of the original at every size of image, and
    ViTMAE becomes a `ViTModel`. An untrained pooler becomes `None`. A mask token that is missing in the file is never
    used.

    Args:
        source: what `model_source.find_model` takes.
        options: of `from_pretrained`, such as `dtype`.

    Raises:
        `ValueError`: one sentence. There is no such model, AutoModel has no class for it, or its weights are damaged,
            missing, of another shape or not finite.
    """
    source = find_model(source)
    if is_other_layout(source):
        return read_other_layout(source).backbone.to(options.get("dtype"))
    model, missing = load_with_missing(
        CLASS_OF_TYPE.get(read_config(source).model_type, AutoModel),
        source,
        may_be_missing=lambda name: "pooler" in name or name.endswith("embeddings.mask_token"),
        **DATA_ALONE,
        **options,
    )
    if any("pooler" in name for name in missing):
        model.pooler = None
    return model


def load_network_and_processor(source: str | Path) -> tuple[PreTrainedModel, Any]:
    """`load_network` and `load_image_processor` for one model, which is read only once."""
    found = find_model(source)
    if not is_other_layout(found):
        return load_network(found), load_image_processor(found)
    read = read_other_layout(found)
    if read.image_processor is None:
        raise ValueError(
            f"{found} is a network for {read.backbone.config.num_channels} channels, for which no image processor is"
            f" known; make a model folder with `dinov2-hf convert {found} FOLDER`, and save one there."
        )
    return read.backbone, read.image_processor


def read_config(source: str | Path) -> PreTrainedConfig:
    """
    The configuration of a model folder or Hub id.

    Raises:
        `ValueError`: one sentence. There is none, or transformers does not know its kind.
    """
    try:
        return AutoConfig.from_pretrained(source, **DATA_ALONE)
    except (
        OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError, StrictDataclassError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"{as_it_was_taken(source)} has no configuration that transformers can read: {reason[:300]}"
            f"{'...' if len(reason) > 300 else ''}."
        ) from error


def load_image_processor(source: str | Path, **options: Any) -> Any:
    """
    The image processor of a model folder or Hub id.

    Args:
        options: of `from_pretrained`, such as `subfolder`.

    Raises:
        `ValueError`: one sentence. There is no image processor, it needs Python code of its folder, or its numbers
            would make features meaningless.
    """
    try:
        image_processor = AutoImageProcessor.from_pretrained(source, **DATA_ALONE, **options)
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")  # which may list all that transformers knows
        raise ValueError(
            f"{source} has no image processor that can be read ({reason[:200]}{'...' if len(reason) > 200 else ''});"
            " save one beside the model."
        ) from None
    for name in ("image_mean", "image_std", "rescale_factor", "size", "crop_size"):
        for number in _numbers(getattr(image_processor, name, None)):
            is_number = isinstance(number, int | float) and math.isfinite(number)
            largest = MAX_SIDE if name in ("size", "crop_size") else math.inf
            if not is_number or (name != "image_mean" and not 0 < number <= largest):
                raise ValueError(
                    f"`{name}` of the image processor of {source} holds {number}, which no image can be brought to;"
                    " save another one beside the model."
                )
    return image_processor


def _numbers(value: Any) -> list[Any]:
    """The numbers of a value; for a size only its sides, and not its areas."""
    if value is None or isinstance(value, int | float | str):
        value = [value]
    elif not isinstance(value, list | tuple):
        value = [number for name, number in dict(value).items() if not name.endswith("pixels")]
    return [number for number in value if number is not None]
