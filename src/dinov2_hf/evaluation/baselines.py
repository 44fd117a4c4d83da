"""A model whose feature is the pixels of the image: the baseline for a trained network."""

from types import SimpleNamespace

import torch
from torch import nn


class PixelModel(nn.Module):
    """`last_hidden_state` is one token for each image, its processed pixels. The model has no real parameters.

    Args:
        num_channels: channels of the images.
        largest_side: in pixels; larger images are averaged down to it. `None` keeps all pixels.
    """

    def __init__(self, num_channels: int = 3, largest_side: int | None = None):
        super().__init__()
        self.largest_side = largest_side
        self.config = SimpleNamespace(num_channels=num_channels)
        self.nothing = nn.Parameter(torch.zeros(0))  # gives the device to use

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Pixels (B, C, H, W) to one token, (B, 1, C * H * W), or shorter if the images are averaged down."""
        side = self.largest_side
        if side is not None and max(pixel_values.shape[-2:]) > side:
            height, width = (min(pixels, side) for pixels in pixel_values.shape[-2:])
            pixel_values = nn.functional.adaptive_avg_pool2d(pixel_values, (height, width))
        return SimpleNamespace(last_hidden_state=pixel_values.flatten(1).unsqueeze(1))
