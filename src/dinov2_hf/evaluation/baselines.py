"""Models whose features are the pixels of an image or of its patches: the baselines for a trained network."""

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


class PatchPixelModel(nn.Module):
    """The tokens are the pixels of the patches, for protocols that need a grid of patches and no CLS token.

    Args:
        patch_size: side of a patch in pixels, as in the network that is compared.
        num_channels: channels of the images.
    """

    def __init__(self, patch_size: int, num_channels: int = 3):
        super().__init__()
        width = num_channels * patch_size**2
        self.config = SimpleNamespace(
            num_channels=num_channels, patch_size=patch_size, hidden_size=width, num_hidden_layers=1
        )
        self.nothing = nn.Parameter(torch.zeros(0))  # gives the device to use

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """Pixels (B, C, H, W) to the tokens of whole patches, row by row, (B, h * w, C * patch_size ** 2)."""
        patch_size = self.config.patch_size
        tokens = nn.functional.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=tokens)

    def get_intermediate_layers(
        self, pixel_values: torch.Tensor, n: list[int], return_class_token: bool, norm: bool
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """As of `DINOv2Model`, for its one block. The mean of the patches stands in the place of the CLS token."""
        tokens = self(pixel_values).last_hidden_state
        return [(tokens, tokens.mean(dim=1)) for _ in n]
