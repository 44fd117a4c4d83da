"""Tensors in a file, stored with everything that they depend on. They are reused only if all of it is the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic_files import new_file


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], depends_on: Mapping[str, Any], **said: Any) -> None:
    """Write tensors to a file.

    Args:
        depends_on: everything that they depend on, as JSON values.
        said: further facts about them, as JSON values.
    """
    metadata = {"depends_on": json.dumps(depends_on, sort_keys=True), "said": json.dumps(said)}
    with new_file(path, overwrite=True) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, metadata)


def read_tensors(path: Path, depends_on: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors with the same dependencies, and the facts about them; None if there is no readable file of these."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata["depends_on"] != json.dumps(depends_on, sort_keys=True):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["said"])
    except (SafetensorError, OSError, KeyError, ValueError):  # damaged
        return None
