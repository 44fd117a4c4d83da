"""Trained heads are on disk before they are measured. If the measurement fails, the training is not repeated."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor

from ..features import DatasetOrRows, FeatureExtractor
from ..keyed_tensors import keep_tensors, read_tensors


FILE = "unmeasured_head.safetensors"


def training_settings(extractor: FeatureExtractor, train_dataset: DatasetOrRows, **options: Any) -> dict[str, Any]:
    """Everything that the training of a head on a frozen model depends on, for `train_once`.

    Args:
        options: options of the protocol, as JSON values.
    """
    return {
        **extractor.depends_on(train_dataset),
        "num_processes": extractor.world_size,
        "options": options,
    }


def train_once(
    extractor: FeatureExtractor,
    tensors: Mapping[str, Tensor],
    train: Callable[[], Any],
    *,
    settings: Mapping[str, Any],
    output_dir: str | Path | None,
) -> bool:
    """Train a head and write it, or load the head of an earlier training with the same settings.

    Args:
        extractor: its main process reads and writes.
        tensors: weights and buffers of the head by name, which `train` changes in place.
        settings: result of `training_settings`. A value None stands for something that cannot be identified, such as a
            list of rows: then no earlier head is loaded.
        output_dir: a folder for the file, which `forget_unmeasured` removes. None: nothing is written.

    Returns:
        Whether the head was trained now.
    """
    path = None if output_dir is None or not extractor.is_main_process else Path(output_dir) / FILE
    found = None if path is None or None in settings.values() else read_tensors(path, settings)
    has_found = found is not None
    if found is not None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(found[0][name])
    if extractor.processes is not None:
        (has_found,) = broadcast_object_list([has_found])
    if has_found and extractor.world_size > 1:
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.copy_(broadcast(tensor.detach().clone()))
    if has_found:
        return False
    train()
    if path is not None:
        keep_tensors(path, tensors, settings)
    return True


def forget_unmeasured(extractor: FeatureExtractor, output_dir: str | Path | None) -> None:
    """Remove the file after its head has been measured."""
    if output_dir is not None and extractor.is_main_process:
        (Path(output_dir) / FILE).unlink(missing_ok=True)
