"""A trained dense head and its backbone as one model folder."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from ...atomic_files import new_folder
from ...models import DINOv2Config, DINOv2ImageProcessor, DINOv2Model


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
    """Write backbone, head and image processor; for a model that is no `DINOv2Model` only `head.safetensors`.

    Args:
        model_class: has the backbone as `dinov2` and the head as `decode_head`.
        sizes: fields of the saved image processor that say how it resizes; it does not crop.
    """
    head = copy.deepcopy(decode_head).to(next(model.parameters()).dtype).state_dict()
    if not isinstance(model, DINOv2Model):
        with new_folder(folder, "model", overwrite=True) as partial:
            save_file(head, partial / "head.safetensors")
        return
    with torch.device("meta"):  # no second copy of the backbone
        whole = model_class(config)
    state = {f"dinov2.{name}": tensor for name, tensor in model.state_dict().items()}
    whole.load_state_dict(state | {f"decode_head.{name}": tensor for name, tensor in head.items()}, assign=True)
    values = image_processor_values(image_processor) | {"do_center_crop": False} | sizes
    with new_folder(folder, "model", overwrite=True) as partial:
        whole.save_pretrained(partial)
        DINOv2ImageProcessor(**values).save_pretrained(partial)
