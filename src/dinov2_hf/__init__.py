"""DINOv2 for Hugging Face transformers. Importing the package registers its Auto classes."""

from .auto import register
from .models import DINOv2Config, DINOv2ImageProcessor, DINOv2Model
from .pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig


__version__ = "0.1.0.dev0"
__all__ = [
    "DINOv2Config",
    "DINOv2ForPreTraining",
    "DINOv2ImageProcessor",
    "DINOv2Model",
    "DINOv2PreTrainingConfig",
]

register()
