"""
What a run is told: a flat YAML recipe, overridden by flags of the same names.

A recipe may hold every field of `PreTrainingArguments` and of the two configurations (the backbone's and the
pretraining's): names are unique over the three, so one flat list of them can be read and compared line by line.
"""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from transformers import HfArgumentParser, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


@dataclass
class PreTrainingArguments:
    """
    What belongs to a run rather than to the network or the objective. The first five groups change results; the others
    do not. The size of the global crops is the backbone's `image_size`.
    """

    # --- data
    train_data: str = field(
        metadata={
            "help": "Images to train on, labels not needed: a folder, parquet file(s) or a glob of them, a folder"
            " written by save_to_disk, WebDataset tar(s), or a dataset name on the Hub."
        }
    )
    train_split: str = field(default="train", metadata={"help": "Split of train_data, where it has splits."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of images; by default the only one, or the one named like an image."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read train_data as a stream, without a local copy."})
    shuffle_buffer_size: int = field(
        default=1000, metadata={"help": "Encoded images that each worker of a stream holds to shuffle them."}
    )
    sample_order: str = field(
        default="global",
        metadata={"help": '"global": the same order for any number of processes; "sharded": the original\'s.'},
    )

    # --- where the weights start
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: a model on the Hub, a model folder or an original .pth (fresh heads), or a"
            " run or pretraining_model folder (teacher and heads are kept)."
        },
    )
    freeze_backbone_steps: int = field(
        default=0, metadata={"help": "First steps with the backbone of init_from at rate 0; the heads learn alone."}
    )

    # --- crops and masks (paper, appendix B)
    local_crop_size: int = field(default=98, metadata={"help": "Side of a local crop in pixels."})
    num_local_crops: int = field(default=8, metadata={"help": "Local crops of each image."})
    global_crop_scale: list[float] = field(
        default_factory=lambda: [0.32, 1.0], metadata={"help": "Area of a global crop, as fractions of the image's."}
    )
    local_crop_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.32], metadata={"help": "Area of a local crop, as fractions of the image's."}
    )
    horizontal_flip_probability: float = 0.5
    color_jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    global_blur_probabilities: list[float] = field(
        default_factory=lambda: [0.0, 0.9],
        metadata={
            "help": "Blur of the first and of the second global crop, as the original runs (it intended 1, 0.1)."
        },
    )
    local_blur_probability: float = 0.5
    solarize_probability: float = field(default=0.2, metadata={"help": "Of the second global crop."})
    image_mean: list[float] = field(default_factory=lambda: list(IMAGENET_DEFAULT_MEAN))
    image_std: list[float] = field(default_factory=lambda: list(IMAGENET_DEFAULT_STD))
    mask_probability: float = field(default=0.5, metadata={"help": "Share of the global crops that are masked."})
    mask_ratio: list[float] = field(
        default_factory=lambda: [0.1, 0.5], metadata={"help": "Smallest and largest masked share of a masked crop."}
    )

    # --- optimization (paper, appendix B)
    max_steps: int = field(default=125_000, metadata={"help": "Optimizer steps; every schedule is made for these."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images per device and forward pass."})
    gradient_accumulation_steps: int = 1
    learning_rate: float = field(default=4e-3, metadata={"help": "Peak learning rate before scaling by batch size."})
    learning_rate_scaling: str = field(
        default="sqrt_wrt_1024", metadata={"help": '"sqrt_wrt_1024": times sqrt(global batch / 1024); or "none".'}
    )
    min_learning_rate: float = field(default=1e-6, metadata={"help": "Final learning rate; not scaled."})
    warmup_steps: int = 12_500
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    layerwise_decay: float = field(default=0.9, metadata={"help": "Learning-rate factor from block to block."})
    patch_embed_lr_multiplier: float = 0.2
    freeze_last_layer_steps: int = field(default=1250, metadata={"help": "First steps with prototypes at rate 0."})
    max_grad_norm: float = 3.0
    clip_per_part: bool = field(
        default=True, metadata={"help": "Clip backbone and heads by norms of their own, as the original; or by one."}
    )
    teacher_momentum: float = 0.992
    final_teacher_momentum: float = 1.0
    warmup_teacher_temperature: float = 0.04
    teacher_temperature: float = 0.07
    teacher_temperature_warmup_steps: int = 37_500
    mixed_precision: str = field(
        default="auto", metadata={"help": '"auto" (bf16 where the hardware has it), "no", "bf16" or "fp16".'}
    )
    max_nonfinite_steps: int = field(
        default=5, metadata={"help": "Steps in a row left out for a loss or gradient that is not finite; then stop."}
    )
    seed: int = 0

    # --- evaluation while training
    eval_data: str | None = field(default=None, metadata={"help": "Labelled images: turns k-NN evaluation on."})
    eval_split: str = field(default="test", metadata={"help": "Split of eval_data to classify."})
    eval_bank_data: str | None = field(
        default=None, metadata={"help": "Labelled images to classify with; by default train_data, if it has labels."}
    )
    eval_bank_split: str = field(default="train", metadata={"help": "Split of eval_bank_data."})
    label_column: str = "label"
    max_eval_bank_images: int | None = field(
        default=None, metadata={"help": "Use only the first so many of the bank."}
    )
    max_eval_images: int | None = field(default=None, metadata={"help": "Classify only the first so many."})
    eval_resize_size: int | None = field(
        default=None,
        metadata={"help": "Short side before the centre crop of image_size; by default 256/224 of image_size."},
    )
    per_device_eval_batch_size: int = 64

    # --- how the run is carried out: does not change results
    output_dir: str = field(default="outputs/pretraining", metadata={"help": "Folder of everything the run writes."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete what an earlier run left there."})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": 'A checkpoint folder, or "latest".'})
    allow_recipe_change: bool = field(
        default=False,
        metadata={"help": "Resume with other values, such as learning_rate or max_steps."},
    )
    logging_steps: int = 50
    eval_steps: int = 5000
    save_steps: int = 2500
    save_total_limit: int = field(default=3, metadata={"help": "Checkpoints kept."})
    dataloader_num_workers: int = 8
    max_skipped_fraction: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of the images cannot be decoded."}
    )
    attn_implementation: str = field(
        default="auto", metadata={"help": 'As in from_pretrained; "auto" is sdpa, but eager for bf16 on CPU.'}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute blocks: less memory, slower."})
    report_to: str = field(
        default="none", metadata={"help": "Accelerate tracker for the curves, such as tensorboard, wandb or mlflow."}
    )
    stop_on_collapse: bool = field(
        default=False, metadata={"help": "Stop, with exit code 3, where a collapse would only be warned of."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence of the weights for the model card, such as apache-2.0."}
    )

    # --- upload of the finished run
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the exported model when the run is complete."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository, owner/name; by default the name of output_dir in your account."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Make a new repository private; by default as the organization has it."}
    )
    hub_revision: str | None = field(default=None, metadata={"help": "Branch to upload to; made if missing."})
    hub_pretraining_model: bool = field(
        default=False, metadata={"help": "Also upload student, teacher and heads, several times the model's size."}
    )
    hub_token: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "Token that may write. Better HF_TOKEN or hf auth login: others see flags in the process list."
        },
    )

    def __post_init__(self):
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        for name in ("eval_steps", "save_steps", "save_total_limit", "per_device_eval_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if self.max_nonfinite_steps < 0:
            raise ValueError(
                f"`max_nonfinite_steps` is {self.max_nonfinite_steps}; it must be 0 (stop at the first) or more."
            )
        for name in ("global_crop_scale", "local_crop_scale", "global_blur_probabilities", "mask_ratio"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be two numbers.")
        for name in ("warmup_teacher_temperature", "teacher_temperature", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be above 0.")
        for name in ("teacher_momentum", "final_teacher_momentum", "max_skipped_fraction", "layerwise_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.freeze_backbone_steps < 0:
            raise ValueError(f"`freeze_backbone_steps` is {self.freeze_backbone_steps}; it must be at least 0.")
        if self.freeze_backbone_steps and self.init_from is None:
            raise ValueError(
                f"`freeze_backbone_steps` is {self.freeze_backbone_steps}, but the backbone would be kept at random"
                " weights; set `init_from`, or leave it out."
            )
        for name in ("hub_model_id", "hub_private_repo", "hub_revision", "hub_pretraining_model"):
            if getattr(self, name) and not self.push_to_hub:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, but nothing would be uploaded; add --push_to_hub, or leave it"
                    " out."
                )


# Of one start, not of the recipe: repeating a run from its recipe must not write over what an earlier one left or
# uploaded, and a token belongs in no file.
OF_ONE_START = (
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_recipe_change", "push_to_hub",
    "hub_model_id", "hub_private_repo", "hub_revision", "hub_pretraining_model", "hub_token",
)  # fmt: skip


def recipe_values(args: PreTrainingArguments) -> dict[str, Any]:
    """What of `args` belongs in a recipe that gives the same run again."""
    return {name: value for name, value in dataclasses.asdict(args).items() if name not in OF_ONE_START}


def values_for(function: Callable, args: PreTrainingArguments) -> dict[str, Any]:
    """Those values of `args` that `function` takes under the same names."""
    return {name: getattr(args, name) for name in inspect.signature(function).parameters if hasattr(args, name)}


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` whose complaints are a `ValueError` of one sentence rather than a page of usage."""

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists what can be set.")


def parse_recipe(
    arguments: list[str],
    arguments_type: type,
    config_types: list[type[PreTrainedConfig]],
    defaults: Mapping[str, Any] | None = None,
) -> tuple:
    """
    Read `--config recipe.yaml` (optional) and flags into an `arguments_type` and one `dict` of values for each
    configuration.

    Args:
        defaults: values for what neither recipe nor flags say, in place of those of the types.

    Raises:
        `ValueError`: for a recipe that is not there, an unknown key or flag, or a value of the wrong type.
    """
    parser = RecipeParser([arguments_type, *map(_own_fields, config_types)], allow_abbrev=False)
    parser.add_argument("--config", help="Recipe: a YAML file of the names below.")
    path, flags = _take_config_flag(arguments)
    recipe = _read_recipe(path) if path else {}
    for key in recipe:
        if key not in _names(parser):
            raise ValueError(f"{path} has the unknown key `{key}`; {_suggestion(str(key), parser)}")
    all_flags = [*as_flags(defaults or {}), *as_flags(recipe), *flags]  # of the same flag the last one counts
    *parsed, namespace, unknown = parser.parse_args_into_dataclasses(
        all_flags, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        flag = unknown[0].partition("=")[0]  # without its value, which may be a token
        raise ValueError(f"there is no flag {flag}; {_suggestion(flag.lstrip('-'), parser)}")
    return parsed[0], *(dataclasses.asdict(values) for values in parsed[1:])


def _own_fields(config_type: type[PreTrainedConfig]) -> type:
    """The fields that a configuration class declares itself, as a dataclass for the parser; sub-configurations out."""
    own = [field_ for field_ in dataclasses.fields(config_type) if field_.name in config_type.__annotations__]
    return dataclasses.make_dataclass(
        f"{config_type.__name__}Values",
        [
            (field_.name, _parser_type(field_.type), field(default=field_.default))
            for field_ in own
            if field_.name not in config_type.sub_configs
        ],
    )


def _parser_type(annotation: Any) -> Any:
    """`float | int` is `float` to a parser, that knows one type at a time."""
    if get_origin(annotation) in (Union, UnionType) and float in get_args(annotation):
        return float
    return annotation


def _take_config_flag(arguments: list[str]) -> tuple[str | None, list[str]]:
    flags = list(arguments)
    for index, flag in enumerate(flags):
        if flag.startswith("--config="):
            return flag.removeprefix("--config="), flags[:index] + flags[index + 1 :]
        if flag == "--config" and index + 1 < len(flags):
            return flags[index + 1], flags[:index] + flags[index + 2 :]
    return None, flags


def _read_recipe(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"`--config` is {path}, which is not a file; give the path of a YAML recipe.")
    recipe = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is not a recipe: it must be a list of `name: value` lines.")
    return recipe


def _names(parser: HfArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions}


def _suggestion(name: str, parser: HfArgumentParser) -> str:
    close = difflib.get_close_matches(name, _names(parser), n=1)
    return f"did you mean `{close[0]}`?" if close else "--help lists the names that there are."


def as_flags(recipe: Mapping[str, Any]) -> list[str]:
    """A recipe as the flags that say the same, so that one parser checks and converts both."""
    flags = []
    for key, value in recipe.items():
        if value is not None:
            values = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
    return flags
