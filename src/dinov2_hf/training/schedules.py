"""
The schedules of a DINOv2 run (paper, appendix B), as values read at a step.

They are plain numbers written into the optimizer rather than `LRScheduler` objects: not all of them are learning
rates, and Accelerate steps a prepared scheduler once for every process.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """
    A linear warm-up with both ends included, then a half cosine from `base` to `final`.

    Args:
        base: value at the end of the warm-up (reached twice: by its last step and by the first of the cosine).
        final: value that the cosine approaches; given from `total_steps` on.
        total_steps: steps of the whole schedule.
        warmup_steps: steps of the warm-up.
        start: value at step 0 when there is a warm-up.
        frozen_steps: steps at the beginning where the value is 0 whatever the schedule says.
        delay_steps: steps at the beginning where the value is 0, before the warm-up and the cosine begin.
    """

    base: float
    final: float
    total_steps: int
    warmup_steps: int = 0
    start: float = 0.0
    frozen_steps: int = 0
    delay_steps: int = 0

    def at(self, step: int) -> float:
        """The value at `step`, counted from 0."""
        if step < max(self.frozen_steps, self.delay_steps):
            return 0.0
        step, total_steps = step - self.delay_steps, self.total_steps - self.delay_steps
        if step < self.warmup_steps:
            share = step / (self.warmup_steps - 1) if self.warmup_steps > 1 else 0.0
            return self.start + (self.base - self.start) * share
        if step >= total_steps:
            return self.final
        progress = (step - self.warmup_steps) / (total_steps - self.warmup_steps)
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class ScheduleValues:
    """What the schedules say at one step; `learning_rate` is that of the heads without their last layers."""

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    backbone_learning_rate: float


@dataclass(frozen=True)
class PreTrainingSchedules:
    """All schedules; `at(step)` reads them."""

    learning_rate: CosineSchedule
    last_layer_learning_rate: CosineSchedule
    weight_decay: CosineSchedule
    teacher_momentum: CosineSchedule
    teacher_temperature: CosineSchedule
    backbone_learning_rate: CosineSchedule

    def at(self, step: int) -> ScheduleValues:
        """Values at `step`, counted from 0."""
        return ScheduleValues(**{name: schedule.at(step) for name, schedule in vars(self).items()})


def build_schedules(
    *,
    peak_learning_rate: float,
    min_learning_rate: float,
    warmup_steps: int,
    freeze_last_layer_steps: int,
    freeze_backbone_steps: int,
    weight_decay: float,
    final_weight_decay: float,
    teacher_momentum: float,
    final_teacher_momentum: float,
    warmup_teacher_temperature: float,
    teacher_temperature: float,
    teacher_temperature_warmup_steps: int,
    max_steps: int,
) -> PreTrainingSchedules:
    """
    The schedules of a run of `max_steps` optimizer steps.

    A frozen backbone has a learning rate of 0, by which AdamW neither moves nor decays a weight; then comes a warm-up
    of its own, as long as that of the heads.

    Raises:
        `ValueError`: when a warm-up, after the steps before it, is longer than the run.
    """
    if warmup_steps > max_steps:
        raise ValueError(
            f"`warmup_steps` is {warmup_steps}, more than `max_steps` ({max_steps}); lower it or train longer."
        )
    if freeze_backbone_steps + warmup_steps > max_steps:
        raise ValueError(
            f"`freeze_backbone_steps` is {freeze_backbone_steps}, after which `warmup_steps` ({warmup_steps}) do not"
            f" fit into `max_steps` ({max_steps}); lower one of the two or train longer."
        )
    learning_rate = {
        "base": peak_learning_rate,
        "final": min_learning_rate,
        "total_steps": max_steps,
        "warmup_steps": warmup_steps,
    }
    return PreTrainingSchedules(
        learning_rate=CosineSchedule(**learning_rate),
        last_layer_learning_rate=CosineSchedule(**learning_rate, frozen_steps=freeze_last_layer_steps),
        weight_decay=CosineSchedule(weight_decay, final_weight_decay, max_steps),
        teacher_momentum=CosineSchedule(teacher_momentum, final_teacher_momentum, max_steps),
        teacher_temperature=CosineSchedule(
            teacher_temperature,
            teacher_temperature,
            teacher_temperature_warmup_steps,
            teacher_temperature_warmup_steps,
            warmup_teacher_temperature,
        ),
        backbone_learning_rate=CosineSchedule(**learning_rate, delay_steps=freeze_backbone_steps),
    )


def scale_learning_rate(learning_rate: float, global_batch_size: int, rule: str) -> float:
    """
    Peak learning rate for a batch of `global_batch_size` images over all devices and accumulation steps.

    Args:
        rule: `"sqrt_wrt_1024"`, the original's `learning_rate * sqrt(batch / 1024)`, or `"none"`.
    """
    if rule == "sqrt_wrt_1024":
        return learning_rate * math.sqrt(global_batch_size / 1024)
    if rule == "none":
        return learning_rate
    raise ValueError(f'`learning_rate_scaling` is "{rule}"; it must be "sqrt_wrt_1024" or "none".')
