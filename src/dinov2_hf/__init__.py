"""DINOv2 for Hugging Face transformers. Importing this package registers it with the Auto classes."""

from typing import TYPE_CHECKING

from .auto import register
from .lazy_names import lazy_names


if TYPE_CHECKING:  # the public names, each imported at its first use
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
__getattr__, __dir__, __all__ = lazy_names(__name__)

register()
