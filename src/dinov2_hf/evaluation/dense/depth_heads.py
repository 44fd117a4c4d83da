"""The depth heads of the paper on a frozen backbone: linear on one or four layers, and DPT (paper section 7.4).

Both have a trainable `module`, predict a depth (B, h, w) for images (B, C, H, W), and are saved as a model folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...atomic_files import new_folder
from ...features import FeatureExtractor
from ...models import DINOv2ForDepthEstimation, DINOv2Model
from ...models.modeling_dinov2_heads import DINOv2DepthHead, center_pad
from ..saved_heads import head_config, save_head
from .patch_features import depth_features
from .pixel_pairs import image_processor_for, value_fields


class LinearDepth:
    """A 1 x 1 convolution to bins on the patches and CLS tokens of some blocks; see `DINOv2DepthHead`."""

    def __init__(self, model: nn.Module, layers: Sequence[int], min_depth: float, max_depth: float):
        self.model, self.layers = model, list(layers)
        self.config = head_config(model, depth_layers=self.layers, min_depth=min_depth, max_depth=max_depth)
        self.module = DINOv2DepthHead(self.config)
        nn.init.normal_(self.module.conv_depth.weight, std=0.01)
        if self.module.conv_depth.bias is not None:
            nn.init.zeros_(self.module.conv_depth.bias)

    def to(self, device: torch.device | str | None) -> None:
        self.module.to(device)

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        return [depth_features(self.model, pixel_values, self.layers)]

    def depth(self, features: list[Tensor], pixel_values: Tensor) -> Tensor:
        return self.module(*features)

    def save(self, image_processor: Any, folder: Path) -> None:
        """Save as a `DINOv2ForDepthEstimation` that takes images of any size without resizing."""
        processor, head = image_processor_for(image_processor, do_resize=False), self.module.state_dict()
        save_head(DINOv2ForDepthEstimation, self.model, "decode_head", head, self.config, processor, folder)


class DPTDepth:
    """transformers' DPT: four blocks, reassembled at four scales (D/8, D/4, D/2 and D channels) and fused.

    Raises:
        ValueError: as `check_dpt`: the model is not a DINOv2, or its hidden size is not divisible by 8.
    """

    def __init__(self, model: nn.Module, layers: Sequence[int], fusion_hidden_size: int = 256):
        from transformers import DPTConfig, DPTForDepthEstimation  # slow to import

        check_dpt(model)
        width = model.config.hidden_size
        backbone = head_config(model, apply_layernorm=False, reshape_hidden_states=False, keep_register_tokens=False)
        backbone.set_output_features_output_indices(out_features=None, out_indices=[layer + 1 for layer in layers])
        config = DPTConfig(
            backbone_config=backbone,
            backbone_out_indices=None,
            hidden_size=width,
            image_size=backbone.image_size,
            patch_size=backbone.patch_size,
            num_channels=backbone.num_channels,
            neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
            fusion_hidden_size=fusion_hidden_size,
            use_auxiliary_head=False,
        )
        self.whole = DPTForDepthEstimation(config)
        self.whole.backbone.load_state_dict(model.state_dict())
        self.whole.backbone.requires_grad_(False).eval()
        # Its last activation is a ReLU, which has no gradient where its input starts below 0.
        nn.init.ones_(self.whole.head.head[-2].bias)
        self.module = nn.ModuleList([self.whole.neck, self.whole.head])

    def to(self, device: torch.device | str | None) -> None:
        self.whole.to(device)

    def features(self, pixel_values: Tensor) -> list[Tensor]:
        return list(self.whole.backbone(center_pad(pixel_values, self.patch_size)).feature_maps)

    def depth(self, features: list[Tensor], pixel_values: Tensor) -> Tensor:
        height, width = (-(-side // self.patch_size) for side in pixel_values.shape[-2:])
        return self.whole.head(self.whole.neck(features, height, width))

    @property
    def patch_size(self) -> int:
        return self.whole.config.backbone_config.patch_size

    def save(self, image_processor: Any, folder: Path) -> None:
        """Save as a `DPTForDepthEstimation` with transformers' own image processor, which pads to whole patches."""
        from transformers import DPTImageProcessor

        with new_folder(folder, "model", overwrite=True) as partial:
            self.whole.save_pretrained(partial)
            DPTImageProcessor(
                **value_fields(image_processor), do_resize=False, do_pad=True, size_divisor=self.patch_size
            ).save_pretrained(partial)


def check_dpt(model: nn.Module) -> None:
    """`ValueError` if no `DPTDepth` can be built on the model."""
    if not isinstance(model, DINOv2Model):
        raise ValueError(f"`head` dpt needs a DINOv2Model, but the model is a {type(model).__name__}.")
    width = model.config.hidden_size
    if width % 8:
        raise ValueError(f"`head` dpt needs a hidden size that is divisible by 8, but the model has {width}.")


def frozen_features(extractor: FeatureExtractor, head: LinearDepth | DPTDepth, pixel_values: Tensor) -> list[Tensor]:
    """The features that a head reads, float32, without gradients."""
    with extractor.frozen():
        return [features.float() for features in head.features(pixel_values)]
