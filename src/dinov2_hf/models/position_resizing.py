"""Resizes stored position embeddings for another image size, such as in the high-resolution phase (section 5)."""

import torch
from transformers import PreTrainedModel

from .modeling_dinov2 import DINOv2Embeddings


@torch.no_grad()
def resize_position_embeddings(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """
    Store the position embeddings of a model for another image size, in place.

    They are resized as the network itself resizes them for such an image, with its own offset and antialiasing. So its
    features of images of `image_size` pixels stay the same. From then on, other sizes are interpolated from the new
    grid.

    Args:
        model: any model of this package with a backbone; all of its backbones are changed.
        image_size: side of the images in pixels, a multiple of the patch size.

    Returns:
        The model itself, with an updated `config.image_size`.

    Raises:
        ValueError: `image_size` is not a multiple of the patch size, or the model has no position embeddings.
    """
    embeddings = [module for module in model.modules() if isinstance(module, DINOv2Embeddings)]
    if not embeddings:
        raise ValueError(f"`model` is a {type(model).__name__}, which has no DINOv2Embeddings to change.")
    patch_size = embeddings[0].patch_embeddings.patch_size
    if image_size < 1 or image_size % patch_size:
        raise ValueError(f"`image_size` is {image_size}; it must be a multiple of the patch size, {patch_size}.")
    grid = (image_size // patch_size, image_size // patch_size)
    for one in embeddings:
        old = one.position_embeddings
        one.position_embeddings = torch.nn.Parameter(one.positions(grid), requires_grad=old.requires_grad)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module.config, "image_size"):
            module.config.image_size = image_size
    return model
