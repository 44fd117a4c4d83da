"""Loads the network of a command, or the baseline that is measured instead."""

from typing import Any

import torch

from ..conversion.saved_models import load_network_and_processor
from ..evaluation.baselines import PatchPixelModel, PixelModel
from ..evaluation.dense.patch_features import square_patch_size
from ..feature_kinds import vision_part
from ..model_source import find_model


def load_backbone(model: str, baseline: str | None = None, *, of_patches: bool = False) -> tuple[torch.nn.Module, Any]:
    """A network without a head and its image processor.

    Args:
        model: as in `model_source.find_model`. `load_network` loads it; for a model of images and texts, only the part
            for images is used.
        baseline: "untrained": the same configuration with fresh weights (seed 0). "pixels": no network.
        of_patches: whether "pixels" are those of patches as large as the network's, or those of the whole image.

    Raises:
        ValueError: it cannot be loaded, its weights are missing or not finite, it has no usable image processor or
            one for another number of channels, or its patches are needed and it has none, or none that are square.
    """
    source = find_model(model)
    network, image_processor = load_network_and_processor(source)
    network = vision_part(network)
    num_channels = getattr(network.config, "num_channels", 3)
    if isinstance(image_processor.image_mean, list | tuple) and len(image_processor.image_mean) != num_channels:
        raise ValueError(
            f"{source} is a network for {num_channels} channels, but `image_mean` of its image processor is "
            f"{list(image_processor.image_mean)}; save one for {num_channels} channels beside it."
        )
    if baseline == "untrained":
        torch.manual_seed(0)
        network = type(network)(network.config)
    elif baseline == "pixels":
        network = PatchPixelModel(square_patch_size(network), num_channels) if of_patches else PixelModel(num_channels)
    return network, image_processor


def describe_processing(image_processor: Any) -> str:
    """The sizes to which an image processor brings images, in words."""
    steps = []
    if getattr(image_processor, "do_resize", False):
        steps.append(f"resized to {_size_in_words(image_processor.size)}")
    if getattr(image_processor, "do_center_crop", False):
        steps.append(f"cropped to {_size_in_words(image_processor.crop_size)}")
    return f"{type(image_processor).__name__}: images {' and '.join(steps) or 'of any size'}"


def _size_in_words(size: Any) -> str:
    size = {name: value for name, value in dict(size).items() if value is not None}
    if set(size) == {"height", "width"}:
        return f"{size['height']} x {size['width']} pixels"
    return f"{', '.join(f'{name} {value}' for name, value in size.items())} pixels"
