"""The pixels of an image as its feature, in the form of a model: what a trained network must be compared with."""

from types import SimpleNamespace

import torch
from torch import nn


class PixelModel(nn.Module):
    """`last_hidden_state` is one token for each image, its processed pixels; there are no parameters to speak of.

    Args:
        num_channels: channels of the images.
        largest_side: in pixels; larger images are averaged down to it. `None` keeps all pixels.
    """

    def __init__(self, num_channels: int = 3, largest_side: int | None = None):
        super().__init__()
        self.largest_side = largest_side
        self.config = SimpleNamespace(num_channels=num_channels)
        self.nothing = nn.Parameter(torch.zeros(0))  # says which device to use

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Pixels (B, C, H, W) to one token, (B, 1, C * H * W), or so many as are left."""
        side = self.largest_side
        if side is not None and max(pixel_values.shape[-2:]) > side:
            height, width = (min(pixels, side) for pixels in pixel_values.shape[-2:])
            pixel_values = nn.functional.adaptive_avg_pool2d(pixel_values, (height, width))
        return SimpleNamespace(last_hidden_state=pixel_values.flatten(1).unsqueeze(1))
