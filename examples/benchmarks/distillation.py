"""
How fast a step of distillation is, beside a step of pretraining and beside students that are trained one by one.

    python examples/benchmarks/distillation.py --config vits14_distilled \
        --teacher_recipe vitl14_imagenet22k --per_device_train_batch_size 4 --steps 5 \
        --output distillation.json

Variants are taken in turn within one process, round after round, so that their ratios hold on a machine whose speed
drifts, on random crops of the recipe's sizes: `pretraining` of the student, its `distillation` from a teacher with the
network and heads of `--teacher_recipe` (weights are random: they do not change the time), and `two_students` of that
size in one run. What that saves is `two_students_over_two_runs`: the time of a step with both over that of two steps
with one each. `--train_data` adds the time in which one process makes a batch, which two runs need twice.

`teacher_share` is the part of a step of distillation that the teacher takes, `rows_of_patches` what the patch-level
loss compares. Peak memory is the process's largest so far on CPU: use `--variants` to measure one alone.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import torch
from pretraining_step import peak_memory, random_batch, report, seconds_per_batch_of_data
from tqdm.auto import tqdm

from dinov2_hf import (
    DINOv2Config,
    DINOv2DistillationConfig,
    DINOv2ForDistillation,
    DINOv2ForPreTraining,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.pretraining.frozen_teacher import FrozenTeacher
from dinov2_hf.runs.distillation_arguments import DistillationArguments
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups, set_schedule
from dinov2_hf.training.processes.distributed import choose_attention, cpu_supports_bfloat16
from dinov2_hf.training.schedules import ScheduleValues


VARIANTS = ("pretraining", "distillation", "two_students")
CONFIGS = [DINOv2Config, DINOv2PreTrainingConfig]
OF_THE_TEACHER = ("num_prototypes", "separate_ibot_head", "ibot_num_prototypes", "centering")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--teacher_recipe", required=True, help="Recipe of a pretraining, for the teacher's sizes.")
    parser.add_argument("--steps", type=int, default=5, help="Timed steps of each variant, after one to warm up.")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers.")
    own, flags = parser.parse_known_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher_flags = ["--config", own.teacher_recipe, "--train_data", ""]
    _, backbone, objective = parse_recipe(teacher_flags, PreTrainingArguments, CONFIGS)
    teacher_config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    of_teacher = {name: objective[name] for name in OF_THE_TEACHER}
    of_teacher |= {name: backbone[name] for name in ("image_size", "patch_size", "num_channels")}
    if "--train_data" not in flags:
        flags += ["--train_data", ""]
    args, backbone, objective, distillation = parse_recipe(
        [*flags, "--teacher", own.teacher_recipe],
        DistillationArguments,
        [*CONFIGS, DINOv2DistillationConfig],
        of_teacher,
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    bf16 = args.mixed_precision == "bf16" or (
        args.mixed_precision == "auto" and (device.type == "cuda" or cpu_supports_bfloat16())
    )
    batch = {name: value.to(device) for name, value in random_batch(args, config).items()}
    variants = {
        name: Variant(name, args, config, teacher_config, DINOv2DistillationConfig(**distillation), device, bf16)
        for name in own.variants
    }
    for step in tqdm(range(1 + own.steps), desc="rounds", disable=not sys.stderr.isatty()):
        for variant in variants.values():
            variant.step(batch, timed=step > 0)
    report(results(args, config, variants, device), own.output)


class Variant:
    """One kind of step, with models and optimizer of its own."""

    def __init__(self, name, args, config, teacher_config, distillation, device, bf16):
        self.device, self.bf16, self.max_grad_norm = device, bf16, args.max_grad_norm
        self.seconds: list[float] = []
        self.teacher_seconds: list[float] = []
        attention = choose_attention(args.attn_implementation, "bf16" if bf16 else "no", device)

        def build(config: DINOv2PreTrainingConfig, attention: str) -> DINOv2ForPreTraining:
            torch.manual_seed(0)
            return DINOv2ForPreTraining._from_config(config, attn_implementation=attention)

        self.weights = {}
        if name == "pretraining":
            self.model = build(config, attention)
        else:
            teacher = FrozenTeacher(build(teacher_config, "sdpa").teacher, bf16=bf16).to(device)
            names = ["one", "other"] if name == "two_students" else [""]
            self.model = DINOv2ForDistillation(
                distillation,
                {student: build(config, attention).student for student in names},
                dict.fromkeys(names, config),
                teacher,
            )
            teacher.backbone.register_forward_pre_hook(lambda *_: self.teacher_seconds.append(-self.now()))
            teacher.backbone.register_forward_hook(lambda *_: self.stop_teacher())
            self.weights["teacher"] = sum(parameter.numel() for parameter in teacher.backbone.parameters())
        self.model.to(device).train()
        student = next(iter(self.model.students.values()))
        self.weights["student"] = sum(parameter.numel() for parameter in student.backbone.parameters())
        groups = [
            group
            for student in self.model.students.values()
            for group in parameter_groups(
                student,
                layerwise_decay=args.layerwise_decay,
                patch_embed_lr_multiplier=args.patch_embed_lr_multiplier,
            )
        ]
        self.optimizer = build_optimizer(groups, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2)
        set_schedule(self.optimizer, ScheduleValues(1e-4, 1e-4, 0.04, 0.99, 0.07, 1e-4))

    def step(self, batch: dict[str, torch.Tensor], timed: bool) -> None:
        started = self.now()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.model(**batch, teacher_temperature=0.07)
        output["loss"].backward()
        for student in self.model.students.values():
            for part in student.children():
                torch.nn.utils.clip_grad_norm_(part.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, average in self.model.exported.items():
            update_ema(average, self.model.students[name], 0.99)
        seconds = self.now() - started
        if timed:
            self.seconds.append(seconds)
        else:
            self.teacher_seconds.clear()

    def stop_teacher(self) -> None:
        self.teacher_seconds[-1] += self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def results(
    args: DistillationArguments, config: DINOv2PreTrainingConfig, variants: dict[str, Variant], device: torch.device
) -> dict:
    batch_size, backbone = args.per_device_train_batch_size, config.backbone_config
    medians = {name: statistics.median(variant.seconds) for name, variant in variants.items()}
    found = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "bf16": next(iter(variants.values())).bf16,
        "batch": batch_size,
        "crops": f"2 x {backbone.image_size} + {args.num_local_crops} x {args.local_crop_size}",
        "rows_of_patches": 2 * batch_size * (backbone.image_size // backbone.patch_size) ** 2,
        "images_per_second": {name: batch_size / seconds for name, seconds in medians.items()},
        "peak_memory_gib": peak_memory(device),
    }
    if "distillation" in variants:
        weights = variants["distillation"].weights
        found["teacher_over_student_weights"] = weights["teacher"] / weights["student"]
        found["teacher_share"] = statistics.median(
            part / whole
            for part, whole in zip(
                variants["distillation"].teacher_seconds, variants["distillation"].seconds, strict=True
            )
        )
    if {"pretraining", "distillation"} <= medians.keys():
        found["distillation_over_pretraining"] = ratio(variants, "distillation", "pretraining")
    if {"distillation", "two_students"} <= medians.keys():
        found["two_students_over_two_runs"] = ratio(variants, "two_students", "distillation") / 2
    if args.train_data:
        data = seconds_per_batch_of_data(dataclasses.replace(args, students=None), config)
        found["seconds_per_batch_of_data"] = data
        if {"distillation", "two_students"} <= medians.keys():
            found["two_students_over_two_runs_with_data"] = (medians["two_students"] + data) / (
                2 * (medians["distillation"] + data)
            )
    return found


def ratio(variants: dict[str, Variant], one: str, other: str) -> float:
    """The median of the rounds' ratios of time."""
    pairs = zip(variants[one].seconds, variants[other].seconds, strict=True)
    return statistics.median(first / second for first, second in pairs)


if __name__ == "__main__":
    main()
