"""The initial weights of a pretraining: a backbone for student and teacher, or everything of an earlier run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..conversion.loaded_weights import load_whole
from ..conversion.model_folder import saved_backbone
from ..conversion.other_layouts import read_other_layout
from ..model_source import MODEL, PRETRAINING_MODEL, find_model, is_other_layout, read_json
from ..models import DINOv2Config, DINOv2Model, adapt_num_channels, resize_position_embeddings
from ..pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig


# Fields that are fixed by the weights, and a recipe cannot change. The initial value of LayerScale no longer matters.
BACKBONE_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act", "use_swiglu_ffn",
    "layer_norm_eps", "patch_size", "qkv_bias", "num_register_tokens", "layerscale_value",
)  # fmt: skip
HEAD_FIELDS = (
    "num_prototypes", "head_hidden_size", "head_num_layers", "bottleneck_size", "separate_ibot_head",
    "ibot_num_prototypes", "ibot_bottleneck_size",
)  # fmt: skip
# Fields that a recipe can change: the first two by `adapt_num_channels` and `resize_position_embeddings`, the others
# because no weight depends on them.
FREE_BACKBONE_FIELDS = (
    "num_channels", "image_size", "drop_path_rate", "initializer_range", "interpolate_offset", "interpolate_antialias",
)  # fmt: skip
# Fields that cannot change within a run: those of its checkpoints, and those that only matter for fresh weights.
FIXED_FIELDS = (
    *BACKBONE_FIELDS, *HEAD_FIELDS, "num_channels", "image_size", "layerscale_value", "initializer_range",
)  # fmt: skip


def load_initial_model(source: str) -> DINOv2Model | DINOv2ForPreTraining:
    """
    The model of `source`, in float32.

    Args:
        source: as in `model_source.find_model`. A `pretraining_model` folder, a folder that contains one, the same on
            the Hub (`owner/name/pretraining_model`), a checkpoint of a run and a teacher of the original with its
            heads give student, teacher and heads. Everything else gives a backbone.

    Returns:
        A `DINOv2Model` or, with heads, a `DINOv2ForPreTraining`.

    Raises:
        `ValueError`: there is no such model, or its weights are damaged or incomplete.
    """
    found = find_model(source, (PRETRAINING_MODEL, MODEL))
    if is_other_layout(found):
        read = read_other_layout(found)
        return read.models.get(PRETRAINING_MODEL, read.backbone).float()
    if not isinstance(found, Path):
        repository, _, subfolder = found.rpartition("/")
        if subfolder == PRETRAINING_MODEL and repository:
            return load_whole(DINOv2ForPreTraining, repository, subfolder).float()
        return saved_backbone(found).float()
    kind = read_json(found / "config.json", "a model folder, or that of a finished run,").get("model_type")
    if kind == DINOv2PreTrainingConfig.model_type:
        return load_whole(DINOv2ForPreTraining, found).float()
    return saved_backbone(found).float()


def recipe_of(initial: DINOv2Model | DINOv2ForPreTraining) -> dict[str, Any]:
    """The fields of a recipe that weights determine: the network and, with heads, the objective."""
    config = initial.config
    if isinstance(initial, DINOv2ForPreTraining):
        names = DINOv2PreTrainingConfig.__annotations__.keys() - DINOv2PreTrainingConfig.sub_configs.keys()
        objective = {name: getattr(config, name) for name in names if not name.startswith("_")}
        return _backbone_values(config.backbone_config) | objective
    return _backbone_values(config)


def refuse_other_architecture(
    initial: DINOv2Model | DINOv2ForPreTraining, recipe: Mapping[str, Any], source: str
) -> None:
    """`ValueError` if `recipe` describes another network or, if `initial` has heads, other heads."""
    known = recipe_of(initial)
    advice = dict.fromkeys(BACKBONE_FIELDS, "leave it out of the recipe")
    if not recipe["num_register_tokens"]:
        advice["num_register_tokens"] += ", or add --allow_recipe_change to go on without registers"
    if isinstance(initial, DINOv2ForPreTraining):
        advice |= dict.fromkeys(HEAD_FIELDS, "leave it out, or continue from the backbone alone, with fresh heads")
    for name, text in advice.items():
        if recipe[name] != known[name]:
            raise ValueError(f"`{name}` is {recipe[name]}, but the weights of {source} have {known[name]}; {text}.")


def drop_registers(initial: DINOv2Model | DINOv2ForPreTraining) -> None:
    """Remove the register tokens of the weights in place, if there are any."""
    networks = [initial]
    if isinstance(initial, DINOv2ForPreTraining):
        networks = [initial.student.backbone, initial.teacher.backbone]
        initial.config.backbone_config.num_register_tokens = 0
    for network in networks:
        network.config.num_register_tokens = 0
        network.embeddings.register_tokens = None


def initialise(model: DINOv2ForPreTraining, initial: DINOv2Model | DINOv2ForPreTraining) -> None:
    """
    Copy weights into a model before its pretraining; `ValueError` as in `refuse_other_architecture`.

    A backbone is copied to the student and the teacher, and the heads are not changed. From a `DINOv2ForPreTraining`
    everything is copied, including running centres if both have them. A different number of channels or image size is
    adapted, in `initial` itself.
    """
    wanted = recipe_of(model)
    refuse_other_architecture(initial, wanted, f"the {type(initial).__name__}")
    _adapt(initial, wanted)
    if isinstance(initial, DINOv2ForPreTraining):
        kept = model.state_dict()
        model.load_state_dict(kept | {name: value for name, value in initial.state_dict().items() if name in kept})
        return
    for network in (model.student, model.teacher):
        network.backbone.load_state_dict(initial.state_dict())


def initialise_backbone(backbone: DINOv2Model, initial: DINOv2Model | DINOv2ForPreTraining) -> None:
    """As `initialise`, for a backbone alone; from a `DINOv2ForPreTraining` it takes the backbone of the teacher."""
    wanted = recipe_of(backbone)
    initial = initial.teacher.backbone if isinstance(initial, DINOv2ForPreTraining) else initial
    refuse_other_architecture(initial, wanted, f"the {type(initial).__name__}")
    _adapt(initial, wanted)
    backbone.load_state_dict(initial.state_dict())


def _adapt(initial: DINOv2Model | DINOv2ForPreTraining, wanted: Mapping[str, Any]) -> None:
    known = recipe_of(initial)
    if known["num_channels"] != wanted["num_channels"]:
        adapt_num_channels(initial, wanted["num_channels"])
    if known["image_size"] != wanted["image_size"]:
        resize_position_embeddings(initial, wanted["image_size"])


def _backbone_values(config: DINOv2Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in BACKBONE_FIELDS + FREE_BACKBONE_FIELDS}
