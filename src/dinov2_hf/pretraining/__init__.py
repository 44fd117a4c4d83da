"""The objective: heads, centering, losses, and the modules that hold student and teacher (paper, sections 4 and 5)."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names


if TYPE_CHECKING:
    from .configuration_dinov2_distillation import DINOv2DistillationConfig
    from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
    from .modeling_dinov2_distillation import DINOv2ForDistillation
    from .modeling_dinov2_pretraining import DINOv2ForPreTraining
    from .objective import DINOv2ForPreTrainingOutput

__getattr__, __dir__, __all__ = lazy_names(__name__)
