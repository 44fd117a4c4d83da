"""Turns a sequence of tokens back into a map of patches."""

import torch

from .configuration_dinov2 import DINOv2Config


def patch_map(tokens: torch.Tensor, pixel_values: torch.Tensor, config: DINOv2Config) -> torch.Tensor:
    """The patches `(B, D, h, w)` of tokens `(B, 1 + R + h * w, D)` of the images."""
    height = pixel_values.shape[-2] // config.patch_size
    return tokens[:, 1 + config.num_register_tokens :].transpose(1, 2).unflatten(2, (height, -1))
