"""Loss terms that break in one way each, for tests of what is told of them."""

import torch

from dinov2_hf.pretraining.views import Views


def root_loss(views: Views) -> torch.Tensor:
    """Finite, and 0; its gradient is 0 times infinity."""
    cls = views.student_cls
    return torch.sqrt((cls - cls.detach()).square().sum())


def log_loss(views: Views) -> torch.Tensor:
    """The logarithm of 0."""
    cls = views.student_cls
    return torch.log((cls - cls.detach()).square().sum())
