"""The pixels of an image as its feature, in the form of a model: what a trained network must be compared with."""

from types import SimpleNamespace

import torch
from torch import nn


class PixelModel(nn.Module):
    """`last_hidden_state` is one token for each image, its processed pixels; there are no parameters to speak of.

    Args:
        num_channels: channels of the images.
    """

    def __init__(self, num_channels: int = 3):
        super().__init__()
        self.config = SimpleNamespace(num_channels=num_channels)
        self.nothing = nn.Parameter(torch.zeros(0))  # says which device to use

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Pixels (B, C, H, W) to one token, (B, 1, C * H * W)."""
        return SimpleNamespace(last_hidden_state=pixel_values.flatten(1).unsqueeze(1))
