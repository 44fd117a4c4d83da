"""
Student, teacher and the loss between them (paper, section 4), in one module whose `forward` returns the loss.
"""

import copy

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from ..models.checkpoint_keys import SavesCheckpointKeysAsTheyAre
from .centering import build_centerings
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .heads import BackboneWithHeads, Prototypes
from .objective import Objective
from .teachers import EmaTeacher


class DINOv2ForPreTraining(Objective, SavesCheckpointKeysAsTheyAre, PreTrainedModel):
    """
    DINO on CLS tokens, iBOT on masked patches, and KoLeo on CLS features. The teacher is an average of the student.

    `forward` takes exactly the output of the collator, plus the teacher's temperature and the weights of further loss
    terms. The module does not update the teacher. The training loop does, with `update_ema(model.teacher,
    model.student, momentum)`.
    """

    config: DINOv2PreTrainingConfig
    base_model_prefix = "student"
    main_input_name = "global_crops"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DINOv2Layer", "ProjectionHead"]  # units that FSDP2 shards by default
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    model_tags = ["dinov2"]
    task = "pretraining"

    def __init__(self, config: DINOv2PreTrainingConfig):
        super().__init__(config)
        teacher_backbone_config = copy.deepcopy(config.backbone_config)
        teacher_backbone_config.drop_path_rate = 0.0
        self.student = BackboneWithHeads(config, config.backbone_config)
        self.teacher = BackboneWithHeads(config, teacher_backbone_config)
        self.teacher.requires_grad_(False)
        self.dino_centering, self.ibot_centering = build_centerings(config)
        self.teach_with(EmaTeacher(self.teacher))
        self.post_init()
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise only heads; the backbones initialise themselves."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.backbone_config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, Prototypes):
            bound = module.weight_v.shape[1] ** -0.5
            init.uniform_(module.weight_v, -bound, bound)
            init.ones_(module.weight_g)

    @property
    def students(self) -> dict[str, BackboneWithHeads]:
        """The trained networks, by name; a single one has an empty name."""
        return {"": self.student}

    @property
    def exported(self) -> dict[str, BackboneWithHeads]:
        """The averages of the students, by the same names; their `backbone` is what is exported."""
        return {"": self.teacher}

    def continued_as(self, name: str) -> tuple["DINOv2ForPreTraining", dict[str, str]]:
        """The module that a later run can continue from, and the paths of its weights: this whole module."""
        return self, {"": ""}

    def get_input_embeddings(self) -> None:  # type: ignore[override]  # its type does not allow None
        """`None`, because there are two networks and no single embedding. The preparation for FSDP2 calls this."""
        return None

    def train(self, mode: bool = True) -> "DINOv2ForPreTraining":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def loss_weights(self) -> dict[str, float]:
        """See `Objective`."""
        return paper_weights(self.config)


def paper_weights(config: DINOv2PreTrainingConfig) -> dict[str, float]:
    """The weights of the terms of the paper, by name."""
    return {name: getattr(config, f"{name}_loss_weight") for name in ("dino", "ibot", "koleo")}
