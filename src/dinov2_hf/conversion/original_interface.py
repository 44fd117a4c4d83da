"""
Our networks with the methods of the original's networks, for code that was written for its `torch.hub.load`.

Shapes: `B` images, `N` patches, `R` registers, `D` hidden size.
"""

import torch
from torch import nn

from ..models import DINOv2ForImageClassification, DINOv2Model


class OriginalBackbone(nn.Module):
    """
    A `DINOv2Model` with the interface of the original network: images in, CLS features out.

    The attribute `model` is the network itself, with its Hub parameter names.
    """

    def __init__(self, model: DINOv2Model):
        super().__init__()
        self.model = model
        config = model.config
        self.embed_dim = self.num_features = config.hidden_size
        self.patch_size = config.patch_size
        self.num_heads = config.num_attention_heads
        self.n_blocks = config.num_hidden_layers
        self.num_register_tokens = config.num_register_tokens
        self.num_tokens = 1

    def forward(
        self, x: torch.Tensor, masks: torch.Tensor | None = None, is_training: bool = False
    ) -> torch.Tensor | dict[str, torch.Tensor | None]:
        """Images `(B, C, H, W)` to final-normed CLS tokens `(B, D)`; with `is_training` to `forward_features`."""
        features = self.forward_features(x, masks)
        return features if is_training else features["x_norm_clstoken"]

    def forward_features(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> dict[str, torch.Tensor | None]:
        """
        Args:
            x: images `(B, C, H, W)`.
            masks: booleans `(B, N)`, patches to replace by the mask token.

        Returns:
            `x_norm_clstoken` `(B, D)`, `x_norm_regtokens` `(B, R, D)`, `x_norm_patchtokens` `(B, N, D)`, `x_prenorm`
            `(B, 1 + R + N, D)` before the final norm, and `masks`.
        """
        prenorm = self.model.encoder(self.model.embeddings(x, masks)).last_hidden_state
        normed = self.model.layernorm(prenorm)
        return {
            "x_norm_clstoken": normed[:, 0],
            "x_norm_regtokens": normed[:, 1 : 1 + self.num_register_tokens],
            "x_norm_patchtokens": normed[:, 1 + self.num_register_tokens :],
            "x_prenorm": prenorm,
            "masks": masks,
        }

    def get_intermediate_layers(self, x: torch.Tensor, *args, **kwargs):
        """As `DINOv2Model.get_intermediate_layers`."""
        return self.model.get_intermediate_layers(x, *args, **kwargs)


class OriginalClassifier(nn.Module):
    """A `DINOv2ForImageClassification` with the original's interface: images `(B, C, H, W)` in, logits out."""

    def __init__(self, model: DINOv2ForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(B, num_labels)`."""
        return self.model(x).logits
