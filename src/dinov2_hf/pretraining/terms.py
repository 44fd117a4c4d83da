"""
Loss terms (paper, section 4): functions of `Views`, by name. A recipe gives each its weight.

A term returns a scalar tensor, or a `dict` of several that are added up, with names that end in "_loss". In metrics,
curves and the progress line it goes by its name: "gram_loss" for `gram` and for `my_package.gram:gram_loss`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ..named_objects import Registry
from ..training.schedules import loss_name
from .features_objective import feature_loss, resample_grid
from .losses import ibot_loss, image_level_losses, koleo_loss
from .views import Views


# `needs` says which logits a term reads, of "cls" and of "patches": heads that no term needs are not run.
TERMS = Registry("loss term")


@TERMS.register("dino", needs={"cls"})
def dino(views: Views) -> dict[str, torch.Tensor]:
    """Image level: cross-entropy with the targets of the other crops."""
    return image_level_losses(
        views.local_logits, views.global_logits, views.targets.cls, views.config.student_temperature
    )


@TERMS.register("ibot", needs={"patches"})
def ibot(views: Views) -> torch.Tensor:
    """Patch level: cross-entropy with the targets of the same patches."""
    return ibot_loss(
        views.patch_logits,
        views.patch_targets,
        views.crops.masked_weights,
        views.num_global_crops,
        views.config.student_temperature,
    )


@TERMS.register("koleo")
def koleo(views: Views) -> torch.Tensor:
    """Sum of the regulariser over the global crops."""
    return sum(koleo_loss(tokens) for tokens in views.student_cls)


@TERMS.register("cls_feature")
def cls_feature(views: Views) -> torch.Tensor:
    """Distance of projected CLS features from the teacher's; not the paper's."""
    return feature_loss(
        views.student.cls_projector(views.student_cls), views.teacher.cls, views.distillation_config.feature_loss
    )


@TERMS.register("patch_feature")
def patch_feature(views: Views) -> torch.Tensor:
    """Distance of projected patch features from the teacher's on the student's grid; not the paper's."""
    patches = views.student_patches.flatten(0, 1)
    wanted = resample_grid(views.teacher.patches.flatten(0, 1), patches.shape[1:3])
    return feature_loss(views.student.patch_projector(patches), wanted, views.distillation_config.feature_loss)


def needs_of(weights: Mapping[str, float]) -> frozenset[str]:
    """Which logits the terms read that have a weight."""
    return frozenset().union(*(TERMS.named(name).facts.get("needs", ()) for name in weights))


def weighted_sum(weights: Mapping[str, float], views: Views) -> dict[str, torch.Tensor]:
    """`loss`, the sum of the terms times their weights; and the parts that it is made of, by name and without them."""
    parts: dict[str, torch.Tensor] = {}
    loss = 0.0
    for name, weight in weights.items():
        value = TERMS.find(name)(views)
        own = value if isinstance(value, Mapping) else {loss_name(name): value}
        loss = loss + weight * sum(own.values())
        parts |= own
    return {"loss": loss, **parts}


BUILT_IN = tuple(TERMS.names())


def check_loss_terms(loss_terms: Mapping[str, Any]) -> None:
    """
    Raises:
        `ValueError`: a name of a recipe's `loss_terms` is of no term, has a weight of its own elsewhere, or is called
            in metrics like another.
    """
    called: dict[str, str] = {loss_name(name): name for name in BUILT_IN}
    for name in loss_terms:
        TERMS.named(name)
        if name in BUILT_IN:
            raise ValueError(f"`loss_terms` has {name}, whose weight is `{name}_loss_weight`; set that.")
        if loss_name(name) in called:
            raise ValueError(
                f"`loss_terms` has {name}, which metrics would call {loss_name(name)}, as {called[loss_name(name)]};"
                " give its function another name."
            )
        called[loss_name(name)] = name
