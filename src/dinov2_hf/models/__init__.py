"""The network a user loads. Knows nothing of training."""

from .configuration_dinov2 import DINOv2Config
from .image_processing_dinov2 import DINOv2ImageProcessor
from .modeling_dinov2 import DINOv2Model, DINOv2PreTrainedModel


__all__ = ["DINOv2Config", "DINOv2ImageProcessor", "DINOv2Model", "DINOv2PreTrainedModel"]
