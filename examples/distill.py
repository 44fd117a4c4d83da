"""
Distil a large frozen DINOv2 into a small one, or into several at once (paper, section 5).

    accelerate launch examples/distill.py --config vits14_distilled \\
        --teacher outputs/vitg14 --train_data path/to/images --output_dir outputs/vits14_distilled

The loop is that of examples/pretrain.py, and so are checkpoints, backends and what the run leaves. The teacher is a
finished run of pretrain.py or its `pretraining_model`, whose heads make the targets; without heads, any model by
`--distillation_objective features`. A recipe with a list `students:` trains several, each left in
`output_dir/students/<name>` as a run of its own would leave it. docs/distillation.md tells more.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from dinov2_hf import (
    DINOv2Config,
    DINOv2DistillationConfig,
    DINOv2ForDistillation,
    DINOv2ForPreTraining,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.pretraining.distillation_checks import check_distillation
from dinov2_hf.pretraining.features_objective import BackboneWithProjectors
from dinov2_hf.pretraining.rank_groups import RankGroups
from dinov2_hf.runs.arguments import recipe_values
from dinov2_hf.runs.distillation_arguments import DistillationArguments, values_of_student
from dinov2_hf.runs.distillation_teacher import load_teacher
from dinov2_hf.runs.initial_weights import (
    BACKBONE_FIELDS,
    FIXED_FIELDS,
    FREE_BACKBONE_FIELDS,
    initialise,
    initialise_backbone,
    load_initial_model,
    recipe_of,
    refuse_other_architecture,
)
from dinov2_hf.runs.recipe_checks import check_crops, check_mask_grid
from dinov2_hf.runs.recipes import parse_recipe
from dinov2_hf.training.backends import backend_name, compute_precision
from dinov2_hf.training.distributed import choose_attention
from dinov2_hf.training.optimizer import parameter_groups


if __package__:  # installed
    from . import pretrain
else:
    import pretrain

KINDS = (DistillationArguments, [DINOv2Config, DINOv2PreTrainingConfig, DINOv2DistillationConfig])
# What students may differ in. The crops are those of all, and prototypes are the teacher's.
OWN_FIELDS = {
    *BACKBONE_FIELDS, *FREE_BACKBONE_FIELDS, "head_hidden_size", "head_num_layers", "bottleneck_size",
    "ibot_bottleneck_size",
} - {"image_size", "num_channels"}  # fmt: skip


class StudentPlan:
    """One student: the recipe with its own values in their place, and the weights that it starts from."""

    def __init__(self, arguments: list[str], entry: dict, of_teacher: dict):
        own = values_of_student(entry, OWN_FIELDS)
        self.args, backbone, objective, _ = parse_recipe(arguments, *KINDS, of_teacher, own)
        self.initial = load_initial_model(self.args.init_from) if self.args.init_from else None
        if self.initial is not None:  # whose network is the student's, where the recipe says nothing else
            self.args, backbone, objective, _ = parse_recipe(
                arguments, *KINDS, of_teacher | recipe_of(self.initial), own
            )
            refuse_other_architecture(self.initial, backbone | objective, self.args.init_from)
        self.values = backbone | objective
        self.config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
        check_crops(self.args, self.config)

    def build(self, attention: str, feature_widths: dict | None) -> tuple[torch.nn.Module, torch.nn.Module | None]:
        """The student and what its average starts from, `None` for a copy; the same whatever was built before it."""
        set_seed(self.args.seed)
        if feature_widths is None:
            whole = DINOv2ForPreTraining._from_config(self.config, attn_implementation=attention)
            if self.initial is not None:
                initialise(whole, self.initial)
            return whole.student, whole.teacher
        student = BackboneWithProjectors(self.config.backbone_config, attn_implementation=attention, **feature_widths)
        if self.initial is not None:
            initialise_backbone(student.backbone, self.initial)
        return student, None


class DistillationPlan:
    """What is particular to a distillation; see `PreTrainingPlan`."""

    def __init__(self, arguments: list[str]):
        self.args, _, _, distillation = parse_recipe(arguments, *KINDS)
        args, self.distillation = self.args, DINOv2DistillationConfig(**distillation)
        self.objective = self.distillation.distillation_objective
        self.loaded = load_teacher(args.teacher, self.objective)
        of_teacher = self.loaded.recipe(self.objective)
        entries = {entry["name"]: entry for entry in args.students} if args.students else {"": {}}
        self.students = {name: StudentPlan(arguments, entry, of_teacher) for name, entry in entries.items()}
        # What the entries of students are laid over.
        _, backbone, objective, _ = parse_recipe(arguments, *KINDS, of_teacher)
        values = backbone | objective if args.students else self.students[""].values
        self.groups = {name: entry["num_processes"] for name, entry in entries.items() if "num_processes" in entry}
        self.configs = {name: student.config for name, student in self.students.items()}
        check_distillation(
            self.loaded.network.config,
            self.distillation,
            self.configs,
            teacher_image_size=args.teacher_image_size,
            num_local_crops=args.num_local_crops,
        )
        self.config = next(iter(self.configs.values()))  # crops and loss weights are those of all
        check_mask_grid(self.config.backbone_config)
        self.fixed = (*FIXED_FIELDS, "distillation_objective", "projector_hidden_size")
        self.recipe = {**values, **distillation, **recipe_values(args)}
        # Elsewhere masks hide nothing, and there is nothing to choose.
        self.has_masks = self.objective == "paper" and self.distillation.ibot_tokens != "all"
        patches = f"the paper's, iBOT on {self.distillation.ibot_tokens} patches"
        features = f"{self.distillation.feature_loss} of features (not the paper's)"
        self.description = {
            "teacher": args.teacher, "objective": patches if self.objective == "paper" else features,
        }  # fmt: skip
        if self.groups:
            shares = (f"{name} by {count}" for name, count in self.groups.items())
            self.description["seen together"] = f"the global batch: {', '.join(shares)} processes"
        if self.objective == "features" and args.hub_pretraining_model:
            raise ValueError(
                "`hub_pretraining_model` is true, but distillation of features leaves no pretraining_model, without"
                " heads; leave it out."
            )

    def build_model(self, accelerator: Accelerator) -> torch.nn.Module:
        args, precision = self.args, compute_precision(accelerator)
        teacher_precision = precision if args.teacher_mixed_precision == "auto" else args.teacher_mixed_precision
        teacher = self.loaded.freeze(
            self.objective,
            bf16=teacher_precision == "bf16",
            pixel_mean=args.image_mean,
            pixel_std=args.image_std,
            image_size=args.teacher_image_size,
            device=accelerator.device,
            compiled=args.teacher_compile,
        )
        network, widths = self.config.backbone_config, None
        if self.objective == "features":  # one look also tells whether it can read such crops
            widths = {
                **teacher.widths(network.num_channels, network.image_size, self.distillation),
                "projector_hidden_size": self.distillation.projector_hidden_size,
            }
        attention = choose_attention(args.attn_implementation, precision, accelerator.device)
        built = {name: student.build(attention, widths) for name, student in self.students.items()}
        averages = {name: average for name, (_, average) in built.items() if average is not None}
        return DINOv2ForDistillation(
            self.distillation,
            {name: student for name, (student, _) in built.items()},
            self.configs,
            teacher,
            averages=averages or None,
            rank_groups=self.rank_groups(accelerator),
        )

    def rank_groups(self, accelerator: Accelerator) -> RankGroups | None:
        """Processes of their own for the students, where the recipe gives them."""
        if not self.groups:
            return None
        backend = backend_name(accelerator)
        if backend != "ddp":  # gradients are averaged over all processes in the same order
            raise ValueError(
                f"`num_processes` of the students needs the ddp backend and several processes, but this run is"
                f" launched as {backend}; leave it out, and every process computes all students."
            )
        groups = RankGroups(self.groups)
        groups.check_batch_size(self.args.per_device_train_batch_size)
        return groups

    def parameter_groups(self, model: torch.nn.Module) -> list[dict]:
        groups = []
        for name, student in self.students.items():
            own = parameter_groups(
                model.students[name],
                num_layers=student.config.backbone_config.num_hidden_layers,
                layerwise_decay=student.args.layerwise_decay,
                patch_embed_lr_multiplier=student.args.patch_embed_lr_multiplier,
            )
            factor = student.args.learning_rate / self.args.learning_rate  # schedules are those of the run
            groups += [{**group, "lr_multiplier": group["lr_multiplier"] * factor} for group in own]
        return groups


def main(arguments: list[str]) -> None:
    pretrain.main(arguments, DistillationPlan)


if __name__ == "__main__":
    main(sys.argv[1:])
