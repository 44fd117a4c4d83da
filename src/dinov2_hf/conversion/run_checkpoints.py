"""Reads checkpoints of a run as models, from any backend and with any number of students."""

import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from transformers import PreTrainedModel

from ..model_source import split_checkpoint
from ..models import DINOv2Config, DINOv2Model
from ..models.checkpoint_keys import renamed_below
from ..options import options_of
from ..pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from ..pretraining.modeling_dinov2_distillation import continued_paths, student_key
from ..training.checkpointing.checkpoint_folders import read_state
from ..training.checkpointing.checkpoint_manifest import find_damage
from ..training.checkpointing.checkpoint_pickles import data_only, refuse_code
from ..training.checkpointing.checkpoints import LOAD_ERRORS
from ..training.students import recipe_of_student
from ..training.trained_parts import merged_weights
from .loaded_weights import refuse_not_finite


# Names under which Accelerate writes the weights: whole, in shards of FSDP2, and in shards of DeepSpeed.
WHOLE, FSDP, DEEPSPEED = "model.safetensors", "pytorch_model_fsdp_0", "pytorch_model"


@dataclass(frozen=True)
class ReadCheckpoint:
    """
    Args:
        recipe: that the checkpoint was written with; of several students, the one that trains this one alone.
        backbone: of the average, which a run exports as `model`.
        whole: student, average and heads, which a run exports as `pretraining_model`; `None` where there are no heads.
    """

    recipe: dict[str, Any]
    backbone: DINOv2Model
    whole: DINOv2ForPreTraining | None


def read_checkpoint(source: Path) -> ReadCheckpoint:
    """
    The models that a run would have exported at this step, in memory and in evaluation mode.

    Args:
        source: a checkpoint, as from `model_source.find_model`; with several students, with the name of one below it.

    Raises:
        `ValueError`: it is damaged, contains code or no student of this name, or has several students and none is
            named.
    """
    path, student = split_checkpoint(source)
    recipe = read_state(path).get("recipe")
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} does not tell its recipe, so its weights are of an unknown network; name another.")
    _check_student(path, student, [entry["name"] for entry in recipe.get("students") or ()])
    recipe = recipe_of_student(recipe, student)
    damage = find_damage(path)
    if damage:
        raise ValueError(f"{path} is damaged: {damage}; name another checkpoint.")
    refuse_code(path)
    weights = merged_weights(_flat_weights(path))
    refuse_not_finite(weights, path)
    backbone, objective = (
        {name: recipe[name] for name in options_of(kind) if recipe.get(name) is not None}
        for kind in (DINOv2Config, DINOv2PreTrainingConfig)
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    if recipe.get("distillation_objective") == "features":
        average = renamed_below(weights, {f"average.{student_key(student)}.backbone": ""})
        return ReadCheckpoint(recipe, _filled(path, DINOv2Model, config.backbone_config, average), None)
    if "distillation_objective" in recipe:
        weights = renamed_below(weights, continued_paths(student))
    whole = _filled(path, DINOv2ForPreTraining, config, weights)
    return ReadCheckpoint(recipe, whole.teacher.backbone, whole)


def _check_student(path: Path, student: str, known: list[str]) -> None:
    if student in (known or [""]):
        return
    if known:
        raise ValueError(
            f"{path} is of several students; name one of {', '.join(str(path / name) for name in known)}."
        )
    raise ValueError(f"{path} is of a run with one student, which has no name; name {path}, without /{student}.")


def _flat_weights(path: Path) -> dict[str, Tensor]:
    """All weights and buffers of the trained module, in the memory of the host."""
    try:
        if (path / WHOLE).is_file():
            return load_file(path / WHOLE)
        with data_only():
            return _of_fsdp(path / FSDP) if (path / FSDP).is_dir() else _of_deepspeed(path)
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"The weights of {path} cannot be read ({reason}); name another checkpoint.") from error


def _of_fsdp(folder: Path) -> dict[str, Tensor]:
    reader = FileSystemReader(folder)
    tensors = reader.read_metadata().state_dict_metadata
    weights = {name: torch.empty(tensor.size, dtype=tensor.properties.dtype) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is what is wanted
        load(weights, storage_reader=reader, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _of_deepspeed(path: Path) -> dict[str, Tensor]:
    everything = path / DEEPSPEED / "mp_rank_00_model_states.pt"
    if everything.is_file():  # of ZeRO-1 and ZeRO-2, which spread the optimizer alone
        return torch.load(everything, map_location="cpu")["module"]
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError:
        raise ValueError(
            f'{path} is in shards of DeepSpeed ZeRO-3, which needs deepspeed: pip install "dinov2_hf[deepspeed]".'
        ) from None
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # which tells of every shard
        return get_fp32_state_dict_from_zero_checkpoint(str(path), DEEPSPEED)


def _filled(path: Path, kind: type[PreTrainedModel], config: Any, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    with torch.device("meta"):
        model = kind(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} does not hold the network that its recipe describes ({reason}); name another."
        ) from None
    return model.eval()
