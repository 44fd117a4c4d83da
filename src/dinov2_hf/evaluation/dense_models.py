"""A trained dense head and its backbone as one model folder."""

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..models import DINOv2Config, DINOv2ImageProcessor, DINOv2Model


logger = logging.getLogger(__name__)


def head_config(model: nn.Module, *, id2label: Sequence[str] | None = None, **fields: Any) -> DINOv2Config:
    """The configuration of a head on `model`, and, where that is a DINOv2, of both."""
    if isinstance(model, DINOv2Model):
        config = copy.deepcopy(model.config)
    else:  # what the head reads is its width and its blocks
        config = DINOv2Config(
            hidden_size=model.config.hidden_size, num_attention_heads=1,
            num_hidden_layers=model.config.num_hidden_layers,
        )  # fmt: skip
    for name, value in fields.items():
        setattr(config, name, value)
    if id2label is not None:
        config.id2label = dict(enumerate(id2label))
        config.label2id = {label: number for number, label in config.id2label.items()}
    config.validate()
    return config


def image_processor_values(image_processor: Any) -> dict[str, Any]:
    """What an image processor does to the values of pixels, whatever it does to sizes."""
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb")
    return {name: getattr(image_processor, name) for name in names if hasattr(image_processor, name)}


def save_dense_model(
    model_class: type[PreTrainedModel],
    model: nn.Module,
    decode_head: nn.Module,
    config: DINOv2Config,
    image_processor: Any,
    sizes: dict[str, Any],
    folder: Path,
) -> None:
    """Write backbone, head and image processor; nothing but a warning for a model that is no `DINOv2Model`.

    Args:
        model_class: has the backbone as `dinov2` and the head as `decode_head`.
        sizes: fields of the saved image processor that say how it resizes; it does not crop.
    """
    if not isinstance(model, DINOv2Model):
        logger.warning("the head is not saved, because the model is a %s, not a DINOv2Model", type(model).__name__)
        return
    whole = model_class(config)
    whole.dinov2.load_state_dict(model.state_dict())
    whole.decode_head.load_state_dict(decode_head.state_dict())
    whole.save_pretrained(folder)
    values = image_processor_values(image_processor) | {"do_center_crop": False} | sizes
    DINOv2ImageProcessor(**values).save_pretrained(folder)
