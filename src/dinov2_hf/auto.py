"""Registration with transformers' Auto classes and pipelines, in one place. Other models get what they got before."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
)
from transformers.utils import is_torchvision_available

from .models import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
)
from .models.pipelines import register_pipelines
from .pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig


def register() -> None:
    """Make the Auto classes of transformers know ours, and its pipelines decode images for them as in training."""
    AutoConfig.register(DINOv2Config.model_type, DINOv2Config)
    AutoModel.register(DINOv2Config, DINOv2Model)
    AutoBackbone.register(DINOv2Config, DINOv2Backbone)
    AutoModelForImageClassification.register(DINOv2Config, DINOv2ForImageClassification)
    AutoModelForSemanticSegmentation.register(DINOv2Config, DINOv2ForSemanticSegmentation)
    AutoModelForDepthEstimation.register(DINOv2Config, DINOv2ForDepthEstimation)
    image_processors = {"pil": DINOv2ImageProcessorPil}
    if is_torchvision_available():  # the other class can be made without it, and fails at its first image
        image_processors["torchvision"] = DINOv2ImageProcessor
    AutoImageProcessor.register(DINOv2Config, image_processor_classes=image_processors)
    AutoConfig.register(DINOv2PreTrainingConfig.model_type, DINOv2PreTrainingConfig)
    AutoModelForPreTraining.register(DINOv2PreTrainingConfig, DINOv2ForPreTraining)
    register_pipelines()
