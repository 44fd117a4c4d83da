"""Loading the network of a command, and what is measured in its place to compare with."""

from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ..evaluation.pixels import PixelModel
from ..models import DINOv2Model


def load_backbone(model: str, baseline: str | None = None) -> tuple[torch.nn.Module, Any]:
    """A network without a head and its image processor.

    Args:
        model: folder or Hub id. Stock `dinov2` checkpoints are loaded as `DINOv2Model`, with the features of the
            original at every size of image.
        baseline: "untrained": the same configuration with fresh weights (seed 0). "pixels": no network.

    Raises:
        ValueError: it cannot be loaded, or the image processor is for another number of channels.
    """
    try:
        config = AutoConfig.from_pretrained(model)
        image_processor = AutoImageProcessor.from_pretrained(model)
        loader = DINOv2Model if config.model_type in ("dinov2", "dinov2_with_registers") else AutoModel
        network = loader.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"`model` is {model}, which cannot be loaded: {' '.join(str(error).split())}") from None
    num_channels = getattr(network.config, "num_channels", 3)
    if isinstance(image_processor.image_mean, list | tuple) and len(image_processor.image_mean) != num_channels:
        raise ValueError(
            f"`model` is {model}, a network for {num_channels} channels, but `image_mean` of its image processor is "
            f"{list(image_processor.image_mean)}; save one for {num_channels} channels beside it."
        )
    if baseline == "untrained":
        torch.manual_seed(0)
        network = type(network)(network.config)
    elif baseline == "pixels":
        network = PixelModel(num_channels)
    return network, image_processor
