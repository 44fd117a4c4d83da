"""A teacher that says the same of both global crops of an image: the mean of what it would say of each."""

from dataclasses import replace

import torch

from dinov2_hf.pretraining.centering import Centering
from dinov2_hf.pretraining.teachers import EmaTeacher, Targets, TeacherTokens


class AgreeingTeacher(EmaTeacher):
    def targets(
        self, tokens: TeacherTokens, patch_indices: torch.Tensor | slice | None, centering: Centering
    ) -> Targets:
        targets = super().targets(tokens, patch_indices, centering)
        return replace(targets, cls=targets.cls.mean(dim=0, keepdim=True).expand_as(targets.cls))
