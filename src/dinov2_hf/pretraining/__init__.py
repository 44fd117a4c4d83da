"""The objective: heads, centering, losses, and the module that holds student and teacher (paper, section 4)."""

from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .modeling_dinov2_pretraining import DINOv2ForPreTraining, DINOv2ForPreTrainingOutput


__all__ = ["DINOv2ForPreTraining", "DINOv2ForPreTrainingOutput", "DINOv2PreTrainingConfig"]
