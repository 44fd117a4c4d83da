"""What was trained is on disk before it is measured: if the measurement fails, the training is not done again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_files import new_file
from ..features import DatasetOrRows, FeatureExtractor
from ..fingerprints import dataset_fingerprint, processor_values, weights_fingerprint


FILE = "unmeasured_head.safetensors"


def training_settings(extractor: FeatureExtractor, train_dataset: DatasetOrRows, **options: Any) -> dict[str, Any]:
    """All that the training of a head on a frozen model depends on, for `train_once`.

    Args:
        options: of the protocol, as JSON holds them.
    """
    return {
        "model": weights_fingerprint(extractor.model),
        "train_dataset": dataset_fingerprint(train_dataset),
        "image_processor": processor_values(extractor.image_processor),
        "image_column": extractor.image_column,
        "precision": str(extractor.autocast_dtype),
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
    """Train a head and write it, or take the one that was written by a training with the same settings.

    Args:
        extractor: its main process reads and writes.
        tensors: weights and buffers of the head by name, which `train` changes in place.
        settings: of `training_settings`. A value None stands for something that cannot be told apart, such as a list
            of rows: then nothing is taken.
        output_dir: a folder for the file, which `forget_unmeasured` removes. None: nothing is written.

    Returns:
        Whether it has trained.
    """
    is_main, path = extractor.is_main_process, None if output_dir is None else Path(output_dir) / FILE
    key = json.dumps(settings, sort_keys=True)
    found = is_main and path is not None and None not in settings.values() and _read(path, key, tensors)
    if extractor.processes is not None:
        (found,) = broadcast_object_list([found])
    if found:
        if extractor.world_size > 1:
            with torch.no_grad():
                for tensor in tensors.values():
                    tensor.copy_(broadcast(tensor.detach().clone()))
        return False
    train()
    if is_main and path is not None:
        with new_file(path, overwrite=True) as partial:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                partial,
                {"settings": key},
            )
    return True


def forget_unmeasured(extractor: FeatureExtractor, output_dir: str | Path | None) -> None:
    """Remove the file, once its head is measured."""
    if output_dir is not None and extractor.is_main_process:
        (Path(output_dir) / FILE).unlink(missing_ok=True)


def _read(path: Path, key: str, tensors: Mapping[str, Tensor]) -> bool:
    """Fill the tensors from a file of the same settings; False where there is none."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("settings") != key or set(file.keys()) != set(tensors):
                return False
            loaded = {name: file.get_tensor(name) for name in tensors}
    except (SafetensorError, OSError):  # damaged: it is trained again
        return False
    if any(loaded[name].shape != tensor.shape for name, tensor in tensors.items()):
        return False
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(loaded[name])
    return True
