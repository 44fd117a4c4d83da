"""A trained head and its backbone as one model folder."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..atomic_files import new_folder
from ..models import DINOv2Config, DINOv2Model


def head_config(model: nn.Module, *, id2label: Sequence[Any] | None = None, **fields: Any) -> DINOv2Config:
    """The configuration of a head on `model`, and of the model too if it is a DINOv2."""
    if isinstance(model, DINOv2Model):
        config = copy.deepcopy(model.config)
    else:  # a head only reads its width and its blocks
        own: Any = model.config
        config = DINOv2Config(
            hidden_size=own.hidden_size, num_attention_heads=1, num_hidden_layers=own.num_hidden_layers
        )
    for name, value in fields.items():
        setattr(config, name, value)
    if id2label is not None:
        config.id2label = {number: str(label) for number, label in enumerate(id2label)}
        config.label2id = {label: number for number, label in config.id2label.items()}
    config.validate()
    return config


def save_head(
    model_class: type[PreTrainedModel],
    model: nn.Module,
    name: str,
    head: Mapping[str, Tensor],
    config: DINOv2Config,
    image_processor: Any,
    folder: Path,
    *,
    reads: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that the Auto classes and pipelines load: backbone, head and image processor.

    For a model that is not a `DINOv2Model` it contains only the head, in `{name}.safetensors`.

    Args:
        model_class: has the backbone as `dinov2` and the head as `name`.
        head: weights and buffers of the head.
        config: configuration of both, from `head_config`.
        folder: created if it is missing; an earlier model that this package wrote there is replaced.
        reads: the features that the head reads, for `{name}.json` of a folder with only a head.
    """
    dtype = next(model.parameters()).dtype
    head = {
        key: (tensor.to(dtype) if tensor.is_floating_point() else tensor).detach().contiguous()
        for key, tensor in head.items()
    }
    with new_folder(folder, "model", overwrite=True) as partial:
        if not isinstance(model, DINOv2Model):
            save_file(head, partial / f"{name}.safetensors")
            if reads is not None:
                (partial / f"{name}.json").write_text(json.dumps(reads, indent=2) + "\n")
            return
        with torch.device("meta"):  # no second copy of the backbone
            whole = model_class(config)
        state = {f"dinov2.{key}": tensor for key, tensor in model.state_dict().items()}
        whole.load_state_dict(state | {f"{name}.{key}": tensor for key, tensor in head.items()}, assign=True)
        whole.save_pretrained(partial)
        image_processor.save_pretrained(partial)
