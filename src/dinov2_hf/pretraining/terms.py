"""
Loss terms (paper, section 4): functions of `Views`, by name. A recipe gives each its weight.

A term returns a scalar tensor, or a `dict` of several that are added up, with names that end in "_loss". Metrics,
curves and the progress line use its name: "gram_loss" for `gram` and for `my_package.gram:gram_loss`.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch

from ..named_objects import Registry
from ..options import keyword_options, read_mapping
from ..training.schedules import loss_name
from ..value_ranges import ABOVE_ZERO, NOT_NEGATIVE
from .features_objective import feature_loss, resample_grid
from .gram_anchoring import gram_anchoring_loss
from .losses import ibot_loss, image_level_losses, kde_loss, koleo_loss
from .views import Views


# `needs` says which logits a term reads, "cls" or "patches", and whether it reads the features of a "gram_teacher".
# Heads that no term needs are not run. `weight` is the field of a configuration with the weight of the term. Other
# terms have their weight in the recipe's `loss_terms`, together with their keywords. `may_change` is for a term of the
# first kind without parameters, which would have no gradient at a weight of 0: `loss_terms` may say what its weight
# becomes.
TERMS = Registry("loss term")


@TERMS.register("dino", needs={"cls"}, weight="dino_loss_weight")
def dino(views: Views) -> dict[str, torch.Tensor]:
    """Image level: cross-entropy with the targets of the other crops."""
    return image_level_losses(
        views.local_logits, views.global_logits, views.cls_targets, views.config.student_temperature
    )


@TERMS.register("ibot", needs={"patches"}, weight="ibot_loss_weight")
def ibot(views: Views) -> torch.Tensor:
    """Patch level: cross-entropy with the targets of the same patches."""
    return ibot_loss(
        views.patch_logits,
        views.patch_targets,
        views.crops.masked_weights,
        views.num_global_crops,
        views.config.student_temperature,
    )


@TERMS.register("koleo", weight="koleo_loss_weight", may_change=True)
def koleo(views: Views) -> torch.Tensor:
    """Sum of the regulariser over the global crops."""
    groups = views.cls_in_groups(views.config.koleo_group_size)
    return len(views.student_cls) * koleo_loss(groups, views.config.koleo_num_neighbors)


@TERMS.register("kde")
def kde(
    views: Views,
    *,
    concentration: Annotated[float, ABOVE_ZERO] = 5.0,
    group_size: Annotated[int | None, NOT_NEGATIVE] = None,
) -> torch.Tensor:
    """
    Sum over the global crops of a regulariser that can replace KoLeo.

    Args:
        concentration: concentration of the kernel; with a larger value, only closer images repel each other.
        group_size: images that are compared with each other; by default those of a device; 0 is all of a forward pass.
    """
    return len(views.student_cls) * kde_loss(views.cls_in_groups(group_size), concentration)


@TERMS.register("gram_anchoring", needs={"gram_teacher"})
def gram_anchoring(views: Views) -> torch.Tensor:
    """Keep the similarities between patches of a global crop as they were in an earlier network."""
    return gram_anchoring_loss(views.student_patches.flatten(0, 1), views.anchor_patches.flatten(0, 1))


@TERMS.register("cls_feature", weight="cls_feature_loss_weight")
def cls_feature(views: Views) -> torch.Tensor:
    """Distance of projected CLS features from the teacher's; not in the paper."""
    projected = views.student.cls_projector(views.student_cls)
    return feature_loss(projected, views.teacher.cls, _how(views))


@TERMS.register("patch_feature", weight="patch_feature_loss_weight")
def patch_feature(views: Views) -> torch.Tensor:
    """Distance of projected patch features from the teacher's on the student's grid; not in the paper."""
    patches = views.student_patches.flatten(0, 1)
    height, width = patches.shape[1:3]
    wanted = resample_grid(views.teacher.patches.flatten(0, 1), (height, width))
    return feature_loss(views.student.patch_projector(patches), wanted, _how(views))


def _how(views: Views) -> str:
    if views.distillation_config is None:
        raise ValueError("a loss term compares features with those of a teacher; only distillation does that.")
    return views.distillation_config.feature_loss


def needs_of(names: Iterable[str]) -> frozenset[str]:
    """Which logits the terms of these names read."""
    return frozenset().union(*(TERMS.named(name).facts.get("needs", ()) for name in names))


def weighted_sum(
    weights: Mapping[str, float | torch.Tensor], views: Views, options: Mapping[str, Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    """`loss`, the sum of the terms times their weights; and its parts by name, without their weights."""
    parts: dict[str, torch.Tensor] = {}
    loss: Any = 0.0
    for name, weight in weights.items():
        value = TERMS.find(name)(views, **options.get(name, {}))
        own = value if isinstance(value, Mapping) else {loss_name(name): value}
        loss = loss + weight * sum(own.values())
        parts |= own
    return {"loss": loss, **parts}


def term_options(loss_terms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """
    The keywords of a recipe's `loss_terms` other than `weight`, by the names of the terms that have any, as in `{kde:
    {weight: 0.05, concentration: 10}}`.

    Raises:
        `ValueError`: a term does not have such a keyword, or its value has another type or is out of range.
    """
    found = {}
    for name, value in loss_terms.items():
        if isinstance(value, Mapping) and "weight" in value:
            given = {key: own for key, own in value.items() if key != "weight"}
            found[name] = read_mapping(keyword_options(TERMS.find(name)), given, f"{name} in `loss_terms`")
    return found


def with_first_weights(loss_terms: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """A recipe's `loss_terms`, where the schedule of a term with a weight in a field of `config` starts at that."""
    found = dict(loss_terms)
    for name, value in loss_terms.items():
        field = TERMS.named(name).facts.get("weight")
        if field is not None:
            found[name] = {"start": getattr(config, field), **value}
    return found


BUILT_IN = tuple(TERMS.names())


def check_loss_terms(loss_terms: Mapping[str, Any]) -> None:
    """
    Raises:
        `ValueError`: a name of a recipe's `loss_terms` is not a term; has its weight in another field, and here more
            than what it becomes; or has the same name in metrics as another. Or `term_options` refuses its options.
    """
    called: dict[str, str] = {loss_name(name): name for name in BUILT_IN}
    for name, value in loss_terms.items():
        facts = TERMS.named(name).facts
        field, may_change = facts.get("weight"), facts.get("may_change", False)
        if field and not (may_change and isinstance(value, Mapping) and not {"weight", "start"} & set(value)):
            change = ", and here only what it becomes, such as {end: 0, steps: 1000}" if may_change else ""
            raise ValueError(f"`loss_terms` has {name}, whose weight is `{field}`; set that{change}.")
        if called.get(loss_name(name), name) != name:
            raise ValueError(
                f"`loss_terms` has {name}, which metrics would call {loss_name(name)}, as {called[loss_name(name)]};"
                " give its function another name."
            )
        called[loss_name(name)] = name
    term_options(loss_terms)
