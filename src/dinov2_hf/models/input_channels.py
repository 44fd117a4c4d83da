"""Adapts weights pretrained on RGB to images with another number of channels."""

import torch
from transformers import PreTrainedModel

from .modeling_dinov2 import DINOv2PatchEmbeddings


@torch.no_grad()
def adapt_num_channels(model: PreTrainedModel, num_channels: int) -> PreTrainedModel:
    """
    Change the number of input channels of a model in place. The weights of its patch projection are kept.

    One channel gets the sum of the old weights, which is exact for a grey image that was repeated to RGB. More
    channels repeat the old weights in turn (R, G, B, R, ...), scaled by old over new so that the tokens keep their
    size.

    Args:
        model: any model of this package with a patch projection; all of its projections are changed.
        num_channels: channels of the new images, at least 1.

    Returns:
        The model itself, with an updated `config.num_channels`.

    Raises:
        ValueError: `num_channels` is below 1, or the model has no patch projection.
    """
    if num_channels < 1:
        raise ValueError(f"`num_channels` is {num_channels}; it must be at least 1.")
    embeddings = [module for module in model.modules() if isinstance(module, DINOv2PatchEmbeddings)]
    if not embeddings:
        raise ValueError(f"`model` is a {type(model).__name__}, which has no DINOv2PatchEmbeddings to change.")
    for one in embeddings:
        old = one.projection
        if num_channels == 1:
            weight = old.weight.sum(dim=1, keepdim=True)
        else:
            source = torch.arange(num_channels, device=old.weight.device) % old.in_channels
            weight = old.weight[:, source] * (old.in_channels / num_channels)
        old.weight = torch.nn.Parameter(weight, requires_grad=old.weight.requires_grad)
        old.in_channels = one.num_channels = num_channels
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module.config, "num_channels"):
            module.config.num_channels = num_channels
    return model
