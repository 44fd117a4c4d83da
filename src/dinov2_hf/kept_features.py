"""The features of a dataset, in memory or as a file that spares a later program the work.

Shapes: `m` rows that have a feature; `...` the shape of one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic_files import new_file


@dataclass(frozen=True)
class Features:
    """The features of a dataset, in the order of its rows.

    Attributes:
        values: (m, ...) float32 on the CPU.
        rows: (m,) their rows; all rows, where every image can be decoded.
        undecodable_rows: the other rows, and why their image cannot be decoded.
        rule: how the feature was taken from the output of the model, in words; see `feature_kinds`.
    """

    values: Tensor
    rows: Tensor
    undecodable_rows: dict[int, str]
    rule: str


def read_features(folder: Path, depends_on: Mapping[str, Any]) -> Features | None:
    """What `keep_features` wrote of the same; None where there is no such file that can be read."""
    path, key = _place(folder, depends_on)
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            if said["key"] != key:
                return None
            reasons = {int(row): reason for row, reason in json.loads(said["undecodable_rows"]).items()}
            return Features(file.get_tensor("values"), file.get_tensor("rows"), reasons, said["rule"])
    except (SafetensorError, OSError, KeyError, ValueError):  # damaged: they are made again
        return None


def keep_features(features: Features, folder: Path, depends_on: Mapping[str, Any]) -> None:
    """Write features to a file of `folder`.

    Args:
        depends_on: all that they depend on, as JSON holds it.
    """
    path, key = _place(folder, depends_on)
    said = {"key": key, "rule": features.rule, "undecodable_rows": json.dumps(features.undecodable_rows)}
    with new_file(path, overwrite=True) as partial:
        save_file({"values": features.values.contiguous(), "rows": features.rows}, partial, said)


def _place(folder: Path, depends_on: Mapping[str, Any]) -> tuple[Path, str]:
    key = json.dumps(depends_on, sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors", key
