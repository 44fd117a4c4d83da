"""Checks, from configurations and before any computation, whether teacher and students can be compared."""

from collections.abc import Mapping

from transformers import PreTrainedConfig

from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig


def check_distillation(
    teacher: PreTrainedConfig,
    config: DINOv2DistillationConfig,
    students: Mapping[str, DINOv2PreTrainingConfig],
    *,
    teacher_image_size: int | None,
    num_local_crops: int,
) -> None:
    """
    Args:
        teacher: configuration of the loaded model, with heads for the paper's objective.
        students: configurations by name; the name of a single one may be empty.
        teacher_image_size: side in pixels of the teacher's images; `None` means the side of the global crops.

    Raises:
        `ValueError`: a student has other numbers of prototypes, grids of patches or channels than the teacher, a size
            is not a multiple of the patch size, or there are local crops that the objective does not use.
    """
    if config.distillation_objective == "features" and num_local_crops:
        raise ValueError(
            f"`num_local_crops` is {num_local_crops}, but features are compared only for global crops; set it to 0."
        )
    network = getattr(teacher, "backbone_config", teacher)
    image_size = next(iter(students.values())).backbone_config.image_size
    seen = teacher_image_size or image_size
    field = "teacher_image_size" if teacher_image_size else "image_size"
    patch_size = getattr(network, "patch_size", None)
    if isinstance(patch_size, int) and seen % patch_size:
        nearest = max(1, round(seen / patch_size)) * patch_size
        raise ValueError(
            f"`{field}` is {seen}, which is not a multiple of the teacher's patch size, {patch_size}; the nearest"
            f" `teacher_image_size` that fits is {nearest}."
        )
    for name, student in students.items():
        whose = f" of the student {name}" if name else ""
        channels, wanted = student.backbone_config.num_channels, getattr(network, "num_channels", 3)
        if channels != wanted:
            raise ValueError(f"`num_channels`{whose} is {channels}, but the teacher has {wanted}; use {wanted}.")
        if config.distillation_objective == "paper":
            _check_heads(teacher, student, whose)
            _check_grid(seen // patch_size, patch_size, student, whose)


def _check_heads(teacher: DINOv2PreTrainingConfig, student: DINOv2PreTrainingConfig, whose: str) -> None:
    fields = {"num_prototypes": "num_prototypes", "num_patch_prototypes": "num_prototypes"}
    if student.separate_ibot_head and student.ibot_num_prototypes:
        fields["num_patch_prototypes"] = "ibot_num_prototypes"
    for attribute, field in fields.items():
        number, wanted = getattr(student, attribute), getattr(teacher, attribute)
        if number != wanted:
            raise ValueError(
                f"`{field}`{whose} is {number}, but the teacher has {wanted} prototypes there, and they are compared"
                " one by one; leave it out, or use that number."
            )


def _check_grid(teacher_side: int, teacher_patch: int, student: DINOv2PreTrainingConfig, whose: str) -> None:
    backbone = student.backbone_config
    side = backbone.image_size // backbone.patch_size
    if side != teacher_side:
        raise ValueError(
            f"`patch_size`{whose} is {backbone.patch_size}, which makes {side} x {side} patches of a crop, but the"
            f" teacher has {teacher_side} x {teacher_side}, and they are compared one by one; use the teacher's patch"
            f" size, or set `teacher_image_size` to {side * teacher_patch}."
        )
