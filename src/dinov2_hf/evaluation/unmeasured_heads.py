"""What was trained is on disk before it is measured: if the measurement fails, the training is not done again."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..atomic_files import new_file


FILE = "unmeasured_head.safetensors"


def train_once(
    tensors: Mapping[str, Tensor],
    train: Callable[[], None],
    *,
    settings: Mapping[str, Any],
    output_dir: str | Path | None,
    processes: PartialState | None,
) -> bool:
    """Train a head and write it, or take the one that was written by a training with the same settings.

    Args:
        tensors: weights and buffers of the head by name, which `train` changes in place.
        settings: all that the training depends on, as JSON holds it. A value None stands for something that cannot be
            told apart, such as a list of rows: then nothing is taken.
        output_dir: a folder for the file, which `forget_unmeasured` removes. None: nothing is written.
        processes: those that train together; the main one reads and writes.

    Returns:
        Whether it has trained.
    """
    is_main = processes is None or processes.is_main_process
    path = None if output_dir is None else Path(output_dir) / FILE
    key = json.dumps(settings, sort_keys=True)
    found = is_main and path is not None and None not in settings.values() and _read(path, key, tensors)
    if processes is not None:
        (found,) = broadcast_object_list([found])
    if found:
        if processes is not None and processes.num_processes > 1:
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


def forget_unmeasured(output_dir: str | Path | None, processes: PartialState | None) -> None:
    """Remove the file, once its head is measured."""
    if output_dir is not None and (processes is None or processes.is_main_process):
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
