"""The parts of a run that are specific to a pretraining: network and objective of its recipe, and their start."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..models import DINOv2Config
from ..options import values_for
from ..pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from ..pretraining.teachers import TEACHERS
from ..training.trained_parts import choose_trained
from .initial_weights import (
    FIXED_FIELDS,
    drop_registers,
    initialise,
    load_initial_model,
    recipe_of,
    refuse_other_architecture,
)
from .pretraining_arguments import PreTrainingArguments, recipe_values
from .recipe.recipe_checks import check_crops, check_mask_grid
from .recipe.recipe_parsing import parse_recipe
from .recipe.resumed_recipe import network_of_checkpoint


if TYPE_CHECKING:
    from .run import Run


KINDS = (PreTrainingArguments, DINOv2Config, DINOv2PreTrainingConfig)


class NetworkPlan:
    """
    A network to train: the values of its recipe, and the weights that it starts from.

    Args:
        arguments: the words of a command line.
        kinds: the type of the arguments, then the types of configurations: backbone, pretraining, and more.
        defaults, overrides: as in `parse_recipe`.

    Raises:
        `ValueError`: as `parse_recipe`, or values do not fit together or do not fit the weights of `init_from`.
    """

    def __init__(
        self,
        arguments: list[str],
        kinds: Sequence[type],
        defaults: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ):
        self.kinds = kinds
        arguments_type, *config_types = kinds

        def parse(defaults: Mapping[str, Any]) -> tuple:
            return parse_recipe(arguments, arguments_type, config_types, defaults, overrides)

        defaults = defaults or {}
        self.args, backbone, objective, *_ = parse(defaults)
        self.initial = None
        if self.args.init_from and (resumed := network_of_checkpoint(self.args, config_types[:2])):
            # All weights come from the checkpoint. It also has the facts about the network from the first weights.
            self.args, backbone, objective, *_ = parse({**defaults, **resumed})
        elif self.args.init_from:
            self.initial = load_initial_model(self.args.init_from)
            # Their network is the default of the recipe.
            self.args, backbone, objective, *_ = parse({**defaults, **recipe_of(self.initial)})
            if self.args.allow_recipe_change and not backbone["num_register_tokens"]:
                drop_registers(self.initial)
            refuse_other_architecture(self.initial, backbone | objective, self.args.init_from)
        self.values: dict[str, Any] = backbone | objective
        self.config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
        check_crops(self.args, self.config)
        if (self.args.train_blocks or 0) > backbone["num_hidden_layers"]:
            raise ValueError(
                f"`train_blocks` is {self.args.train_blocks}, but the backbone has {backbone['num_hidden_layers']}"
                " blocks; give at most as many."
            )

    def build_network(self, attention: str) -> DINOv2ForPreTraining:
        """Build student, teacher and heads, from `init_from` if the recipe has it. Call it only once."""
        model = DINOv2ForPreTraining._from_config(self.config, attn_implementation=attention)
        if self.initial is not None:
            initialise(model, self.initial)
        self.initial = None  # it is as large as the backbone, or as the whole module
        choose_trained(model.student.backbone, model.teacher.backbone, **values_for(choose_trained, self.args))
        return model


class PreTrainingPlan(NetworkPlan):
    """
    A pretraining.

    Attributes:
        kinds: types of the arguments and configurations, whose fields are the options.
        recipe: names and values that give the same run again.
        fixed: names that cannot change within a run.
        has_masks: whether patches are masked or chosen by masks.
        shares_images: whether processes exchange images; then each must have the same number of masked patches.
        networks_alone_see_crops: whether no code of the user and no other network gets the pixels.
        description: further lines for the log.
    """

    fixed: tuple[str, ...] = (*FIXED_FIELDS, "train_blocks", "lora_rank")
    has_masks: bool = True
    shares_images: bool = False
    description: Mapping[str, str] = {}

    def __init__(self, arguments: list[str]):
        super().__init__(arguments, KINDS)
        self.recipe = {**self.values, **recipe_values(self.args)}
        check_mask_grid(self.config.backbone_config)

    @property
    def networks_alone_see_crops(self) -> bool:
        args = self.args
        return not (args.loss_terms or args.gram_teacher or args.teacher_class)

    def build(self, run: "Run") -> DINOv2ForPreTraining:
        """Build the module to train. Call it only once."""
        model = self.build_network(run.attention)
        if self.args.teacher_class:
            model.teach_with(TEACHERS.find(self.args.teacher_class)(model.teacher))
        return model
