"""
One frozen teacher and one or several students (paper, section 5, "knowledge distillation"), in one module whose
`forward` returns the loss.

It is pretraining with two changes: the targets come from a frozen teacher, and the student's global crops are not
masked. The average of a student's weights, which makes the targets in pretraining, is only kept for export.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from .centering import build_centerings
from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .features_objective import BackboneWithProjectors
from .frozen_teacher import FrozenTeacher
from .heads import BackboneWithHeads
from .modeling_dinov2_pretraining import DINOv2ForPreTraining, paper_weights
from .objective import Objective
from .rank_groups import RankGroups


class DINOv2ForDistillation(Objective, nn.Module):
    """
    Students, their averages and the loss. `forward` takes the arguments of `DINOv2ForPreTraining.forward`. As there,
    the training loop updates the averages.

    The teacher is not a submodule: its weights are in no state dict and no checkpoint, and wrappers do not shard them.
    Move it to the device of the students first.

    Args:
        config: the part of the configuration that all students share.
        students: students by name, with heads for the paper's objective and with projectors for the objective of
            features; the name of a single one may be empty.
        student_configs: configurations by the same names. Loss weights, temperature and centering are taken from the
            first.
        teacher: with heads for the paper's objective.
        averages: initial averages by the same names; by default copies of the students.
        rank_groups: groups of ranks that each compute one student; by default every rank computes all students.
    """

    distillation_config: DINOv2DistillationConfig
    task = "distillation"

    def __init__(
        self,
        config: DINOv2DistillationConfig,
        students: Mapping[str, BackboneWithHeads | BackboneWithProjectors],
        student_configs: Mapping[str, DINOv2PreTrainingConfig],
        teacher: FrozenTeacher,
        *,
        averages: Mapping[str, nn.Module] | None = None,
        rank_groups: RankGroups | None = None,
    ):
        super().__init__()
        self.distillation_config = config
        self.student_configs = dict(student_configs)
        self.config = next(iter(student_configs.values()))
        self.rank_groups = rank_groups
        self.teach_with(teacher)
        self.student, self.average = nn.ModuleDict(), nn.ModuleDict()
        for name, student in students.items():
            average = copy.deepcopy(student) if averages is None else averages[name]
            # Nothing is masked. DDP would wait for a parameter without gradient.
            student.backbone.embeddings.mask_token.requires_grad_(False)
            self.student[student_key(name)], self.average[student_key(name)] = student, average.requires_grad_(False)
        self.dino_centering = self.ibot_centering = None
        if config.distillation_objective == "paper":
            self.dino_centering, self.ibot_centering = build_centerings(self.config)
            for name, center in teacher.centers.items():
                if hasattr(centering := getattr(self, name), "center"):
                    centering.center.copy_(center)
        self.train()

    @property
    def students(self) -> dict[str, nn.Module]:
        """The trained networks, by name; a single one has an empty name."""
        return {name: self.student[student_key(name)] for name in self.student_configs}

    @property
    def exported(self) -> dict[str, nn.Module]:
        """The averages of the students, by the same names."""
        return {name: self.average[student_key(name)] for name in self.student_configs}

    def continued_as(self, name: str) -> tuple[DINOv2ForPreTraining | None, dict[str, str]]:
        """
        A pretraining module, without weights, that continues with a student, its average and their heads; and a
        mapping of their paths in this module to their paths there. The module is `None` for a student without heads.
        """
        if self.distillation_config.distillation_objective != "paper":
            return None, {}
        with torch.device("meta"):
            whole = DINOv2ForPreTraining._from_config(self.student_configs[name])
        return whole, continued_paths(name)

    def train(self, mode: bool = True) -> "DINOv2ForDistillation":
        """The averages stay in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self

    @property
    def loss_weights(self) -> dict[str, float]:
        """See `Objective`."""
        config = self.distillation_config
        if config.distillation_objective == "paper":
            return paper_weights(self.config)
        return {
            "cls_feature": config.cls_feature_loss_weight,
            "patch_feature": config.patch_feature_loss_weight,
            "koleo": self.config.koleo_loss_weight,
        }


def student_key(name: str) -> str:
    """The key of a student in a `ModuleDict`. Keys must not be names of its methods, such as "half"."""
    return f"{name}_student" if name else "student"


def continued_paths(name: str) -> dict[str, str]:
    """Paths of a student, its average and the centres in this module, with their paths in a `DINOv2ForPreTraining`."""
    centers = {path: path for path in ("dino_centering", "ibot_centering")}
    return {f"student.{student_key(name)}": "student", f"average.{student_key(name)}": "teacher", **centers}
