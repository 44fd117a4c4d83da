"""The network a user loads. Knows nothing of training."""

from .configuration_dinov2 import DINOv2Config
from .image_processing_dinov2 import DINOv2ImageProcessor
from .image_processing_pil_dinov2 import DINOv2ImageProcessorPil
from .input_channels import adapt_num_channels
from .modeling_dinov2 import DINOv2Model, DINOv2PreTrainedModel
from .modeling_dinov2_backbone import DINOv2Backbone
from .modeling_dinov2_heads import (
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
)
from .position_resizing import resize_position_embeddings


__all__ = [
    "DINOv2Backbone",
    "DINOv2Config",
    "DINOv2ForDepthEstimation",
    "DINOv2ForImageClassification",
    "DINOv2ForSemanticSegmentation",
    "DINOv2ImageProcessor",
    "DINOv2ImageProcessorPil",
    "DINOv2Model",
    "DINOv2PreTrainedModel",
    "adapt_num_channels",
    "resize_position_embeddings",
]
