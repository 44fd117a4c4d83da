"""Registration with transformers' Auto classes, in one place. Nothing of transformers' own is replaced."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPreTraining

from .models import DINOv2Config, DINOv2ImageProcessor, DINOv2Model
from .pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig


def register() -> None:
    """Make `AutoConfig`, `AutoModel`, `AutoImageProcessor` and `AutoModelForPreTraining` know our classes."""
    AutoConfig.register(DINOv2Config.model_type, DINOv2Config)
    AutoModel.register(DINOv2Config, DINOv2Model)
    AutoImageProcessor.register(DINOv2Config, image_processor_classes={"torchvision": DINOv2ImageProcessor})
    AutoConfig.register(DINOv2PreTrainingConfig.model_type, DINOv2PreTrainingConfig)
    AutoModelForPreTraining.register(DINOv2PreTrainingConfig, DINOv2ForPreTraining)
