"""The backbone as feature maps, for detectors and dense heads that take any transformers backbone."""

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .checkpoint_keys import register_stock_keys
from .configuration_dinov2 import DINOv2Config
from .modeling_dinov2 import DINOv2Embeddings, DINOv2Encoder, DINOv2PreTrainedModel
from .patch_map import patch_map


class DINOv2Backbone(BackboneMixin, DINOv2PreTrainedModel):
    """Feature maps of the blocks that `out_features` or `out_indices` name, from any checkpoint of `DINOv2Model`."""

    def __init__(self, config: DINOv2Config):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = DINOv2Embeddings(config)
        self.encoder = DINOv2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): normalised images; `H` and `W` multiples of the
                patch size.

        Returns:
            `feature_maps`, one for each of `out_features`: `(B, D, h, w)`, or all tokens `(B, 1 + R + N, D)` without
            `config.reshape_hidden_states` (`(B, 1 + N, D)` without `config.keep_register_tokens`); after the final
            norm if `config.apply_layernorm`.
        """
        outputs = self.encoder(self.embeddings(pixel_values), **kwargs)
        feature_maps = []
        for stage, tokens in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage not in self.out_features:
                continue
            if self.config.apply_layernorm:
                tokens = self.layernorm(tokens)
            if self.config.reshape_hidden_states:
                tokens = patch_map(tokens, pixel_values, self.config).contiguous()
            elif not self.config.keep_register_tokens:
                tokens = torch.cat([tokens[:, :1], tokens[:, 1 + self.config.num_register_tokens :]], dim=1)
            feature_maps.append(tokens)
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


register_stock_keys(DINOv2Backbone.__name__)
