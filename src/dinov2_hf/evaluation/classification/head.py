"""A trained linear classifier and its backbone as one model folder."""

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...atomic_files import new_folder
from ...models import DINOv2ForImageClassification, DINOv2Model


def save_classifier(
    model: nn.Module,
    weight: Tensor,
    bias: Tensor,
    *,
    classes: Sequence[str] | Sequence[int],
    num_layers: int,
    use_patch_mean: bool,
    image_processor: Any,
    folder: str | os.PathLike,
) -> Path:
    """Write a linear classifier on the CLS tokens of the last blocks and the mean patch.

    With a `DINOv2Model` it is a folder that `AutoModelForImageClassification` and `pipeline("image-classification")`
    load, backbone included. With another model it holds the head alone: `classifier.safetensors` (`weight`, `bias`)
    and `classifier.json`, which says what it reads.

    Args:
        weight: (C, f), f = D * (num_layers + use_patch_mean): the CLS tokens, shallow to deep, then the mean patch.
        bias: (C,).
        classes: the C names.
        folder: made where it is missing; an earlier model that this package wrote there is replaced.

    Returns:
        The folder.
    """
    id2label = {index: str(name) for index, name in enumerate(classes)}
    with new_folder(folder, "model", overwrite=True) as partial:
        if not isinstance(model, DINOv2Model):
            save_file({"weight": weight, "bias": bias}, partial / "classifier.safetensors")
            reads = {"num_layers": num_layers, "use_patch_mean": use_patch_mean, "id2label": id2label}
            (partial / "classifier.json").write_text(json.dumps(reads, indent=2) + "\n")
            return Path(folder)
        config = copy.deepcopy(model.config)
        config.classifier_num_layers, config.classifier_use_patch_mean = num_layers, use_patch_mean
        config.num_labels = len(id2label)
        config.id2label = id2label
        config.label2id = {name: index for index, name in id2label.items()}
        with torch.device("meta"):  # no second copy of the backbone
            classifier = DINOv2ForImageClassification(config)
        state = {f"dinov2.{name}": tensor for name, tensor in model.state_dict().items()}
        state |= {"classifier.weight": weight.to(model.dtype), "classifier.bias": bias.to(model.dtype)}
        classifier.load_state_dict(state, assign=True)
        classifier.save_pretrained(partial)
        image_processor.save_pretrained(partial)
    return Path(folder)
