"""The environment in which results were computed: packages, device, precision, image size."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..features import FeatureExtractor
from .classification.augmented_images import crop_size_of


PACKAGES = (
    "dinov2_hf", "torch", "torchvision", "transformers", "datasets", "accelerate", "numpy", "pillow", "scikit-learn",
    "torchmetrics", "av",
)  # fmt: skip


def environment_of(extractor: FeatureExtractor) -> dict[str, Any]:
    """Device, number of processes, precision, and the versions of Python and the packages that are installed.

    The precision is in words such as "float32" or "float32, bfloat16 autocast".
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    device = extractor.device
    precision = [str(next(extractor.model.parameters()).dtype)]
    if extractor.autocast_dtype is not None:
        precision.append(f"{extractor.autocast_dtype} autocast")
    return {
        "device": torch.cuda.get_device_name(device) if extractor.device_type == "cuda" else str(device),
        "num_processes": extractor.world_size,
        "precision": ", ".join(precision).replace("torch.", ""),
        "versions": versions,
    }


def image_size_of(image_processor: Any) -> list[int] | None:
    """Height and width in pixels of the image processor's output; None if sizes differ."""
    try:
        return list(crop_size_of(image_processor))
    except ValueError:
        return None
