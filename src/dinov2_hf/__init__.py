"""DINOv2 for Hugging Face transformers. Importing the package registers its Auto classes."""

from .auto import register
from .models import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
    adapt_num_channels,
    resize_position_embeddings,
)
from .pretraining import (
    DINOv2DistillationConfig,
    DINOv2ForDistillation,
    DINOv2ForPreTraining,
    DINOv2PreTrainingConfig,
)


__version__ = "0.1.0.dev0"
__all__ = [
    "DINOv2Backbone",
    "DINOv2Config",
    "DINOv2DistillationConfig",
    "DINOv2ForDepthEstimation",
    "DINOv2ForDistillation",
    "DINOv2ForImageClassification",
    "DINOv2ForPreTraining",
    "DINOv2ForSemanticSegmentation",
    "DINOv2ImageProcessor",
    "DINOv2ImageProcessorPil",
    "DINOv2Model",
    "DINOv2PreTrainingConfig",
    "adapt_num_channels",
    "resize_position_embeddings",
]

register()
