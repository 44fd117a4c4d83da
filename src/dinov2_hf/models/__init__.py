"""The network that a user loads. It does not depend on training."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names


if TYPE_CHECKING:
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

__getattr__, __dir__, __all__ = lazy_names(__name__)
