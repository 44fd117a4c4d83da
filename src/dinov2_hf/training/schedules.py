"""
The schedules of a DINOv2 run (paper, appendix B), as values read at a step.

They are plain numbers that are written into the optimizer, not `LRScheduler` objects: not all of them are learning
rates, and Accelerate steps a prepared scheduler once for every process.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..named_objects import Registry, did_you_mean
from ..value_ranges import NOT_NEGATIVE


# A kind of schedule maps the share of finished steps to the progress of a value from `base` to `final`, 0 to 1.
SCHEDULES = Registry("schedule")
DECAY_SHARE = 0.2  # of a warm-up-stable-decay schedule, the steps at its end


@SCHEDULES.register("cosine")
def cosine(progress: float) -> float:
    """Half a cosine, as in the paper."""
    return 0.5 * (1 - math.cos(math.pi * progress))


@SCHEDULES.register("linear")
def linear(progress: float) -> float:
    """A straight line."""
    return progress


@SCHEDULES.register("constant")
def constant(progress: float) -> float:
    """Always `base`."""
    return 0.0


@SCHEDULES.register("warmup_stable_decay")
def warmup_stable_decay(progress: float) -> float:
    """`base`, then a straight line over the last fifth of the steps after the warm-up."""
    return max(0.0, 1 - (1 - progress) / DECAY_SHARE)


@dataclass(frozen=True)
class Schedule:
    """
    A linear warm-up with both ends included, then the way from `base` to `final`, of which a cool-down may be the end.

    Args:
        base: value at the end of the warm-up (reached twice: by its last step and by the first after it).
        final: value at the end of the way, which a kind may never reach.
        total_steps: steps of the whole schedule; the value stays from there on.
        warmup_steps: steps of the warm-up.
        start: value at step 0 when there is a warm-up.
        frozen_steps: steps at the beginning where the value is 0 whatever the schedule says.
        delay_steps: steps at the beginning where the value is 0, before the warm-up begins.
        kind: one of `SCHEDULES`.
        cooldown_steps: steps at the end in which the value goes to `final` from where the schedule was before them.
        cooldown_kind: one of `SCHEDULES`, the way of the cool-down.
    """

    base: float
    final: float
    total_steps: int
    warmup_steps: int = 0
    start: float = 0.0
    frozen_steps: int = 0
    delay_steps: int = 0
    kind: Callable[[float], float] = cosine
    cooldown_steps: int = 0
    cooldown_kind: Callable[[float], float] = linear

    def at(self, step: int) -> float:
        """The value at `step`, counted from 0."""
        if step < max(self.frozen_steps, self.delay_steps):
            return 0.0
        begin = self.total_steps - self.cooldown_steps
        if not self.cooldown_steps or step < begin:
            return self._on_the_way(step)
        share = self.cooldown_kind(min(1.0, (step - begin) / self.cooldown_steps))
        return (1 - share) * self._on_the_way(begin) + share * self.final

    def _on_the_way(self, step: int) -> float:
        """Without a cool-down, and after the steps in which it is 0."""
        step, total_steps = step - self.delay_steps, self.total_steps - self.delay_steps
        if step < self.warmup_steps:
            share = step / (self.warmup_steps - 1) if self.warmup_steps > 1 else 0.0
            return self.start + (self.base - self.start) * share
        over = (step - self.warmup_steps) / (total_steps - self.warmup_steps) if step < total_steps else 1.0
        share = self.kind(over)
        return (1 - share) * self.base + share * self.final


@dataclass(frozen=True)
class ScheduleValues:
    """
    What the schedules say at one step.

    Args:
        learning_rate: of the heads without their last layers.
        loss_weights: of `loss_terms`, by the names of the recipe.
    """

    learning_rate: float
    last_layer_learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    backbone_learning_rate: float
    loss_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def forward_arguments(self) -> dict[str, Any]:
        """What the objective is told at this step."""
        return {"teacher_temperature": self.teacher_temperature, "loss_weights": self.loss_weights}

    @property
    def metrics(self) -> dict[str, float]:
        """Plain numbers by name; the weight of a term is `<term>_weight`, as in "gram_loss_weight"."""
        values = asdict(self)
        weights = values.pop("loss_weights")
        return values | {f"{loss_name(term)}_weight": weight for term, weight in weights.items()}


@dataclass(frozen=True)
class PreTrainingSchedules:
    """All schedules; `at(step)` reads them."""

    learning_rate: Schedule
    last_layer_learning_rate: Schedule
    weight_decay: Schedule
    teacher_momentum: Schedule
    teacher_temperature: Schedule
    backbone_learning_rate: Schedule
    loss_weights: Mapping[str, Schedule] = field(default_factory=dict)

    def at(self, step: int) -> ScheduleValues:
        """Values at `step`, counted from 0."""
        values = {name: schedule.at(step) for name, schedule in vars(self).items() if name != "loss_weights"}
        return ScheduleValues(**values, loss_weights={name: s.at(step) for name, s in self.loss_weights.items()})


def loss_name(term: str) -> str:
    """What a loss term is called in metrics: "gram_loss" for `gram`, `gram_loss` and `my_package.gram:gram_loss`."""
    return f"{term.rpartition(':')[2].removesuffix('_loss')}_loss"


def build_schedules(
    *,
    peak_learning_rate: float,
    min_learning_rate: float,
    learning_rate_schedule: str,
    warmup_steps: int,
    cooldown_steps: int = 0,
    cooldown_schedule: str = "linear",
    freeze_last_layer_steps: int,
    freeze_backbone_steps: int,
    weight_decay: float,
    final_weight_decay: float,
    weight_decay_schedule: str,
    teacher_momentum: float,
    final_teacher_momentum: float,
    teacher_momentum_schedule: str,
    warmup_teacher_temperature: float,
    teacher_temperature: float,
    teacher_temperature_warmup_steps: int,
    loss_terms: Mapping[str, float | Mapping[str, Any]] | None = None,
    max_steps: int,
) -> PreTrainingSchedules:
    """
    The schedules of a run of `max_steps` optimizer steps.

    A frozen backbone has a learning rate of 0, by which AdamW neither moves nor decays a weight; then comes a warm-up
    of its own, as long as that of the heads.

    Raises:
        `ValueError`: when a warm-up, after the steps before it, or with the cool-down, is longer than the run; or
            there is no such kind.
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
    if freeze_backbone_steps + warmup_steps + cooldown_steps > max_steps:
        raise ValueError(
            f"`cooldown_steps` is {cooldown_steps}, which does not fit into `max_steps` ({max_steps}) after"
            f" {freeze_backbone_steps + warmup_steps} steps of warm-up; lower it or train longer."
        )
    learning_rate = {
        "base": peak_learning_rate,
        "final": min_learning_rate,
        "total_steps": max_steps,
        "warmup_steps": warmup_steps,
        "kind": SCHEDULES.find(learning_rate_schedule),
        "cooldown_steps": cooldown_steps,
        "cooldown_kind": SCHEDULES.find(cooldown_schedule),
    }
    return PreTrainingSchedules(
        learning_rate=Schedule(**learning_rate),
        last_layer_learning_rate=Schedule(**learning_rate, frozen_steps=freeze_last_layer_steps),
        weight_decay=Schedule(weight_decay, final_weight_decay, max_steps, kind=SCHEDULES.find(weight_decay_schedule)),
        teacher_momentum=Schedule(
            teacher_momentum, final_teacher_momentum, max_steps, kind=SCHEDULES.find(teacher_momentum_schedule)
        ),
        teacher_temperature=Schedule(
            teacher_temperature,
            teacher_temperature,
            teacher_temperature_warmup_steps,
            teacher_temperature_warmup_steps,
            warmup_teacher_temperature,
        ),
        backbone_learning_rate=Schedule(**learning_rate, delay_steps=freeze_backbone_steps),
        loss_weights={name: weight_schedule(name, value, max_steps) for name, value in (loss_terms or {}).items()},
    )


def weight_schedule(term: str, value: float | Mapping[str, Any], max_steps: int) -> Schedule:
    """
    The weight of one of `loss_terms`.

    Args:
        value: a number; or `{kind: linear, start: 0, end: 1, steps: 1000, delay_steps: 0}`, where `steps` are counted
            from the first of the run, those with a weight of 0 included, and are all of them by default; or a mapping
            with one of these as `weight`, beside which are keywords of the term.

    Raises:
        `ValueError`: a key is unknown, a number is negative or none, or there is no such kind.
    """
    if isinstance(value, Mapping) and "weight" in value:
        value = value["weight"]
    if not isinstance(value, Mapping):
        return Schedule(_weight(term, value), _weight(term, value), total_steps=0)
    values = {"kind": "linear", "start": None, "end": None, "steps": max_steps, "delay_steps": 0}
    for key in value:
        if key not in values:
            near = did_you_mean(str(key), values) or f" It may have {', '.join(values)}."
            raise ValueError(f"the weight of {term} in `loss_terms` has the unknown key `{key}`.{near}")
    values |= value
    kind = SCHEDULES.find(str(values.pop("kind")))
    start, end, steps, delay = (_weight(f"{term} ({name})", number) for name, number in values.items())
    return Schedule(start, end, int(steps), delay_steps=int(delay), kind=kind)


def _weight(name: str, number: Any) -> float:
    try:
        if float(number) in NOT_NEGATIVE:
            return float(number)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"`loss_terms` gives {name} the value {number}; it must be a number, {NOT_NEGATIVE}.")


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
