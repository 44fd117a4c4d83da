"""Fingerprints that tell whether two things are the same: weights of a model, image processors, datasets."""

import hashlib
from typing import Any

import datasets
import torch
from torch import nn


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def processor_values(image_processor: Any) -> dict[str, Any]:
    """The settings of an image processor that JSON can hold."""
    settings = image_processor.to_dict() if hasattr(image_processor, "to_dict") else vars(image_processor)
    return {name: value for name, value in sorted(settings.items()) if _is_json(value)}


def dataset_fingerprint(dataset: Any) -> str | None:
    """The fingerprint that `datasets` gives a dataset; None for a plain sequence of rows, which has none."""
    return dataset._fingerprint if isinstance(dataset, datasets.Dataset) else None


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_json(one) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))
