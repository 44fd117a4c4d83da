"""The parts of a run that are specific to a distillation: a frozen teacher, and one student or several."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed

from ..models import DINOv2Config
from ..options import values_for
from ..pretraining import DINOv2DistillationConfig, DINOv2ForDistillation, DINOv2PreTrainingConfig
from ..pretraining.distillation_checks import check_distillation
from ..pretraining.features_objective import BackboneWithProjectors
from ..pretraining.rank_groups import RankGroups
from ..training.optimizer import parameter_groups
from ..training.processes.backends import backend_name, compute_precision
from ..training.trained_parts import choose_trained
from .distillation_arguments import DistillationArguments, values_of_student
from .distillation_teacher import load_teacher
from .initial_weights import BACKBONE_FIELDS, FIXED_FIELDS, FREE_BACKBONE_FIELDS, initialise_backbone
from .pretraining_arguments import recipe_values
from .pretraining_plan import NetworkPlan
from .recipe.recipe_checks import check_mask_grid
from .recipe.recipe_parsing import parse_recipe


if TYPE_CHECKING:
    from .run import Run

KINDS = (DistillationArguments, DINOv2Config, DINOv2PreTrainingConfig, DINOv2DistillationConfig)
# Fields in which students may differ. All have the same crops, and the prototypes of the teacher.
OWN_FIELDS = {
    *BACKBONE_FIELDS, *FREE_BACKBONE_FIELDS, "head_hidden_size", "head_num_layers", "bottleneck_size",
    "ibot_bottleneck_size",
} - {"image_size", "num_channels"}  # fmt: skip


class StudentPlan(NetworkPlan):
    """One student: the recipe overridden by its own values, and the weights that it starts from."""

    def build_with(
        self, attention: str, feature_widths: dict | None
    ) -> tuple[torch.nn.Module, torch.nn.Module | None]:
        """The student and the start of its average (`None` for a copy), independent of what was built before."""
        set_seed(self.args.seed)
        if feature_widths is None:
            whole = self.build_network(attention)
            return whole.student, whole.teacher
        student = BackboneWithProjectors(self.config.backbone_config, attn_implementation=attention, **feature_widths)
        if self.initial is not None:
            initialise_backbone(student.backbone, self.initial)
        choose_trained(student.backbone, **values_for(choose_trained, self.args))
        return student, None


class DistillationPlan:
    """A distillation; the attributes are those of `PreTrainingPlan`."""

    kinds = KINDS
    networks_alone_see_crops = False  # the teacher has a precision of its own

    def __init__(self, arguments: list[str]):
        self.args, _, _, distillation = parse_recipe(arguments, KINDS[0], KINDS[1:])
        args, self.distillation = self.args, DINOv2DistillationConfig(**distillation)
        self.objective = self.distillation.distillation_objective
        self.loaded = load_teacher(args.teacher, self.objective)
        of_teacher = self.loaded.recipe()
        entries = {entry["name"]: entry for entry in args.students} if args.students else {"": {}}
        self.students = {
            name: StudentPlan(arguments, KINDS, of_teacher, values_of_student(entry, OWN_FIELDS))
            for name, entry in entries.items()
        }
        # The values that the entries of students override.
        _, backbone, objective, _ = parse_recipe(arguments, KINDS[0], KINDS[1:], of_teacher)
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
        self.config = next(iter(self.configs.values()))  # crops and loss weights are common to all
        check_mask_grid(self.config.backbone_config)
        self.fixed = (*FIXED_FIELDS, "train_blocks", "lora_rank", "distillation_objective", "projector_hidden_size")
        self.recipe = {**values, **distillation, **recipe_values(args)}
        # Otherwise masks hide nothing, and there is nothing to choose.
        self.has_masks = self.objective == "paper" and self.distillation.ibot_tokens != "all"
        self.shares_images = bool(self.groups)
        if args.compile == "step" and self.groups and self.has_masks:
            raise ValueError(
                '`compile` is "step", which is not yet tried with masks of images that the processes of a student'
                ' share; set it to "blocks", or `ibot_tokens` to "all".'
            )
        if self.objective == "features" and args.hub_pretraining_model:
            raise ValueError(
                "`hub_pretraining_model` is true, but distillation of features leaves no pretraining_model, without"
                " heads; leave it out."
            )

    @property
    def description(self) -> dict[str, str]:
        """Further lines for the log."""
        patches = f"the paper's, iBOT on {self.distillation.ibot_tokens} patches"
        features = f"{self.distillation.feature_loss} of features (not the paper's)"
        lines = {"teacher": self.args.teacher, "objective": patches if self.objective == "paper" else features}
        if self.groups:
            shares = (f"{name} by {count}" for name, count in self.groups.items())
            lines["seen together"] = f"the global batch: {', '.join(shares)} processes"
        return lines

    def build(self, run: "Run") -> DINOv2ForDistillation:
        """Build teacher, students and their averages. Call it only once."""
        precision = self.args.teacher_mixed_precision
        if precision == "auto":
            precision = compute_precision(run.accelerator)
        teacher = self.loaded.freeze(self.args, bf16=precision == "bf16", device=run.accelerator.device)
        network, widths = self.config.backbone_config, None
        if self.objective == "features":  # this also checks that it can process such crops
            widths = {
                **teacher.widths(network.num_channels, network.image_size, self.distillation),
                "projector_hidden_size": self.distillation.projector_hidden_size,
            }
        built = {name: student.build_with(run.attention, widths) for name, student in self.students.items()}
        averages = {name: average for name, (_, average) in built.items() if average is not None}
        return DINOv2ForDistillation(
            self.distillation,
            {name: student for name, (student, _) in built.items()},
            self.configs,
            teacher,
            averages=averages or None,
            rank_groups=self._rank_groups(backend_name(run.accelerator)),
        )

    def parameter_groups(self, model: DINOv2ForDistillation) -> list[dict[str, Any]]:
        """The parameter groups of all students, each with its own learning rates."""
        groups = []
        for name, student in self.students.items():
            factor = student.args.learning_rate / self.args.learning_rate  # schedules are those of the run
            for group in parameter_groups(model.students[name], **values_for(parameter_groups, student.args)):
                groups.append({**group, "lr_multiplier": group["lr_multiplier"] * factor})
        return groups

    def _rank_groups(self, backend: str) -> RankGroups | None:
        """Separate processes for the students, if the recipe sets them."""
        if not self.groups:
            return None
        if backend != "ddp":  # gradients are averaged over all processes in the same order
            raise ValueError(
                f"`num_processes` of the students needs the ddp backend and several processes, but this run is"
                f" launched as {backend}; leave it out, and every process computes all students."
            )
        groups = RankGroups(self.groups)
        groups.check_batch_size(self.args.per_device_train_batch_size)
        return groups
