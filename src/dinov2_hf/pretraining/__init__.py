"""The objective: heads, centering, losses, and the modules that hold student and teacher (paper, sections 4 and 5)."""

from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .modeling_dinov2_distillation import DINOv2ForDistillation
from .modeling_dinov2_pretraining import DINOv2ForPreTraining
from .objective import DINOv2ForPreTrainingOutput


__all__ = [
    "DINOv2DistillationConfig",
    "DINOv2ForDistillation",
    "DINOv2ForPreTraining",
    "DINOv2ForPreTrainingOutput",
    "DINOv2PreTrainingConfig",
]
