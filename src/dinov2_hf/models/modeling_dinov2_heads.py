"""
Linear heads on the backbone: image classification, semantic segmentation and depth (paper, section 7).

Parameter names are those of the original's released heads (`decode_head.conv_seg`, `decode_head.conv_depth`) and of
the classifiers on the Hub.

Shapes: `B` images, `h * w` patches, `D` hidden size.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    DepthEstimatorOutput,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from .checkpoint_keys import register_stock_keys
from .configuration_dinov2 import DINOv2Config
from .modeling_dinov2 import DINOv2Model, DINOv2PreTrainedModel
from .patch_map import patch_map


def run_backbone(
    backbone: DINOv2Model,
    pixel_values: torch.Tensor,
    blocks: Sequence[int],
    output_hidden_states: bool | None = None,
    **kwargs,
) -> tuple[BaseModelOutputWithPooling, list[torch.Tensor]]:
    """
    The backbone's outputs, and the tokens after some of its blocks, before the final norm.

    Args:
        blocks: 0-based.
        output_hidden_states: as in the heads' `forward`. Without it the outputs have no `hidden_states`, and those of
            other blocks are not kept in memory.
    """
    if output_hidden_states is None:
        output_hidden_states = backbone.config.output_hidden_states
    # Index 0 is the input of the first block, but its output in transformers before 5.23. Negative indices agree.
    wanted = output_hidden_states or sorted({*blocks, *(block + 1 for block in blocks)})
    outputs = backbone(pixel_values, output_hidden_states=wanted, **kwargs)
    tokens = [outputs.hidden_states[block - backbone.config.num_hidden_layers] for block in blocks]
    if not output_hidden_states:
        outputs.hidden_states = None
    return outputs, tokens


def center_pad(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """
    Pad images with zeros so that both sides are multiples of the patch size (of an odd number of pixels, the larger
    half is below and to the right). The original's models for segmentation and depth do this. They resize the
    prediction for the padded image to the image, a shift of up to half a patch. Its published numbers include this
    shift.
    """
    height, width = pixel_values.shape[-2:]
    rows, columns = -height % patch_size, -width % patch_size
    if not rows and not columns:
        return pixel_values
    padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return nn.functional.pad(pixel_values, padding)


class DINOv2PreTrainedHead(DINOv2PreTrainedModel):
    """A model with a backbone `dinov2`, and a head that reads inner blocks of it."""

    def post_init(self):
        super().post_init()
        # Doing this at the first use, as elsewhere, would break the graph of a compiled model.
        maybe_install_capturing_hooks(self.dinov2.encoder)


class DINOv2ForImageClassification(DINOv2PreTrainedHead):
    """
    One linear layer on the final-normed CLS tokens of the last `classifier_num_layers` blocks (shallow to deep) and,
    with `classifier_use_patch_mean`, the mean patch of the last block (paper, appendix B.3).
    """

    def __init__(self, config: DINOv2Config):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.dinov2 = DINOv2Model(config)
        num_features = config.hidden_size * (config.classifier_num_layers + config.classifier_use_patch_mean)
        self.classifier = nn.Linear(num_features, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): normalised images.
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): class numbers, or values for a regression
                (`config.problem_type`). With labels, `loss` is returned.

        Returns:
            `logits` `(B, num_labels)`.
        """
        depth, num_layers = self.config.num_hidden_layers, self.config.classifier_num_layers
        outputs, blocks = run_backbone(self.dinov2, pixel_values, range(depth - num_layers, depth), **kwargs)
        features = [self.dinov2.layernorm(tokens[:, 0]) for tokens in blocks[:-1]] + [outputs.pooler_output]
        if self.config.classifier_use_patch_mean:
            features.append(outputs[0][:, 1 + self.config.num_register_tokens :].mean(dim=1))
        logits = self.classifier(torch.cat(features, dim=1))
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DINOv2SegmentationHead(nn.Module):
    """Batch norm and a 1 x 1 convolution: patch features `(B, C, h, w)` to logits `(B, num_labels, h, w)`."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        channels = config.hidden_size * config.segmentation_num_layers
        self.bn = nn.BatchNorm2d(channels)
        self.conv_seg = nn.Conv2d(channels, config.num_labels or 0, kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.conv_seg(self.bn(features))


class DINOv2ForSemanticSegmentation(DINOv2PreTrainedHead):
    """Linear segmentation on the final-normed patches of the last `segmentation_num_layers` blocks (section 7.4)."""

    def __init__(self, config: DINOv2Config):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.dinov2 = DINOv2Model(config)
        self.decode_head = DINOv2SegmentationHead(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d) and module is self.decode_head.conv_seg:
            init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> SemanticSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): normalised images of any size (`center_pad`).
            labels (`torch.LongTensor` of shape `(B, H, W)`, *optional*): class of every pixel; pixels of
                `config.semantic_loss_ignore_index` do not count.

        Returns:
            `logits` `(B, num_labels, h, w)`, one for each patch; `loss` is computed after bilinear upsampling to the
            size of the labels.
        """
        if labels is not None and self.num_labels < 2:
            raise ValueError(f"`num_labels` is {self.num_labels}, but a loss over classes needs at least 2.")
        depth, num_layers = self.config.num_hidden_layers, self.config.segmentation_num_layers
        pixel_values = center_pad(pixel_values, self.config.patch_size)
        outputs, blocks = run_backbone(self.dinov2, pixel_values, range(depth - num_layers, depth), **kwargs)
        features = [patch_map(self.dinov2.layernorm(tokens), pixel_values, self.config) for tokens in blocks]
        logits = self.decode_head(torch.cat(features, dim=1))
        loss = None
        if labels is not None:
            upsampled = nn.functional.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = nn.functional.cross_entropy(upsampled, labels, ignore_index=self.config.semantic_loss_ignore_index)
        return SemanticSegmenterOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class DINOv2DepthHead(nn.Module):
    """
    Depth as the mean of `depth_num_bins` depths, spaced evenly from `min_depth` to `max_depth` and weighted by
    `(relu(logit) + 0.1)` divided by its sum: patch features `(B, C, h, w)` to depth `(B, 4 h, 4 w)`.
    """

    def __init__(self, config: DINOv2Config):
        super().__init__()
        num_layers = len(config.depth_layers) if config.depth_layers is not None else 1
        self.min_depth, self.max_depth = float(config.min_depth), float(config.max_depth)
        self.conv_depth = nn.Conv2d(2 * config.hidden_size * num_layers, config.depth_num_bins, kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # The original first upsamples the features and then convolves. A 1 x 1 convolution and a resampling whose
        # weights sum to 1 commute, and there are 256 bins but up to 12,288 features.
        logits = nn.functional.interpolate(
            self.conv_depth(features), scale_factor=4, mode="bilinear", align_corners=False
        )
        weights = logits.relu() + 0.1
        depths = torch.linspace(
            self.min_depth, self.max_depth, weights.shape[1], device=weights.device, dtype=weights.dtype
        )
        return torch.einsum("bkhw,k->bhw", weights / weights.sum(dim=1, keepdim=True), depths)


class DINOv2ForDepthEstimation(DINOv2PreTrainedHead):
    """
    Linear depth on the patches of `depth_layers`, each concatenated with the CLS token of its block, without the final
    norm (section 7.4).
    """

    def __init__(self, config: DINOv2Config):
        super().__init__(config)
        self.dinov2 = DINOv2Model(config)
        self.decode_head = DINOv2DepthHead(config)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, labels: None = None, **kwargs) -> DepthEstimatorOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): normalised images of any size (`center_pad`).

        Returns:
            `predicted_depth` `(B, 4 h, 4 w)`, in the unit of `min_depth` and `max_depth`.

        Raises:
            `ValueError`: `labels` are given. As in transformers' depth models, the loss is part of the training code.
        """
        if labels is not None:
            raise ValueError("`labels` is given, but this model has no loss of its own; compare `predicted_depth`.")
        layers = self.config.depth_layers
        layers = sorted(layers) if layers is not None else [self.config.num_hidden_layers - 1]
        pixel_values = center_pad(pixel_values, self.config.patch_size)
        outputs, blocks = run_backbone(self.dinov2, pixel_values, layers, **kwargs)
        features = []
        for tokens in blocks:
            patches = patch_map(tokens, pixel_values, self.config)
            features += [patches, tokens[:, 0, :, None, None].expand_as(patches)]
        return DepthEstimatorOutput(
            predicted_depth=self.decode_head(torch.cat(features, dim=1)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


for head in (DINOv2ForImageClassification, DINOv2ForSemanticSegmentation, DINOv2ForDepthEstimation):
    register_stock_keys(head.__name__)
