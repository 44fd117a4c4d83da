"""What results were computed with: packages, device, precision, image size."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from .classification.augmented_images import crop_size_of


PACKAGES = (
    "dinov2_hf", "torch", "torchvision", "transformers", "datasets", "accelerate", "numpy", "pillow", "scikit-learn",
    "torchmetrics", "av",
)  # fmt: skip


def environment_of(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Device, number of processes, and the versions of Python and the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "num_processes": num_processes, "versions": versions}


def precision_of(model: nn.Module, autocast_dtype: torch.dtype | None) -> str:
    """In words such as "float32" or "float32, bfloat16 autocast": the dtype of the weights, and of the autocast."""
    weights = str(next(model.parameters()).dtype).removeprefix("torch.")
    return weights if autocast_dtype is None else f"{weights}, {str(autocast_dtype).removeprefix('torch.')} autocast"


def image_size_of(image_processor: Any) -> list[int] | None:
    """Height and width in pixels of what the image processor makes; None where sizes differ."""
    try:
        return list(crop_size_of(image_processor))
    except ValueError:
        return None
