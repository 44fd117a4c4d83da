"""Gram anchoring (DINOv3, section 4): patches of one image are as alike to the student as to its teacher."""

import torch
from torch.nn import functional as F

from dinov2_hf.pretraining.views import Views


def similarities(patches: torch.Tensor) -> torch.Tensor:
    """Patch features `(G, B, h, w, D)` to the cosines of all pairs of a crop, `(G, B, h * w, h * w)`."""
    directions = F.normalize(patches.float().flatten(2, 3), dim=-1)
    return directions @ directions.mT


def gram_loss(views: Views) -> torch.Tensor:
    """Mean squared difference of the student's similarities and the teacher's, which have no gradient."""
    return F.mse_loss(similarities(views.student_patches), similarities(views.teacher.patches))
