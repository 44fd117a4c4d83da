"""From a sequence of tokens back to a picture of them."""

import torch

from .configuration_dinov2 import DINOv2Config


def patch_map(tokens: torch.Tensor, pixel_values: torch.Tensor, config: DINOv2Config) -> torch.Tensor:
    """Tokens `(B, 1 + R + h * w, D)` of the images to their patches, `(B, D, h, w)`."""
    height = pixel_values.shape[-2] // config.patch_size
    return tokens[:, 1 + config.num_register_tokens :].transpose(1, 2).unflatten(2, (height, -1))
