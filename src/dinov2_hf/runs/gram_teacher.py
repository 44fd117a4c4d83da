"""The Gram teacher of a run, whose similarities of patches the run keeps, on the device of the training."""

from pathlib import Path

import torch
from accelerate import Accelerator

from ..pretraining import DINOv2ForPreTraining
from ..pretraining.frozen_teacher import FrozenTeacher
from ..pretraining.objective import Objective
from ..training.checkpointing.checkpoint_folders import checkpoint_name
from ..training.processes.backends import compute_precision
from .distillation_teacher import load_teacher
from .pretraining_arguments import PreTrainingArguments
from .run_folder import MODELS_OF_STEPS


def anchor(model: Objective, args: PreTrainingArguments, accelerator: Accelerator, folder: Path, step: int) -> None:
    """
    Set the Gram teacher of an objective after `step` steps, if the recipe has one: the network of the recipe, or the
    average of the run itself at the last multiple of `gram_teacher_update_steps`.

    Args:
        folder: of the run.

    Raises:
        `ValueError`: as `load_gram_teacher`, or several students would have to update it.
    """
    if not args.gram_teacher:
        return
    if args.gram_teacher_update_steps and len(model.students) > 1:
        raise ValueError(
            f"`gram_teacher_update_steps` is {args.gram_teacher_update_steps}, but this run trains"
            f" {', '.join(model.students)}, and all keep to one Gram teacher; leave it out."
        )
    every = args.gram_teacher_update_steps
    renewed = step // every * every if every else 0
    source = str(folder / MODELS_OF_STEPS / checkpoint_name(renewed)) if renewed else args.gram_teacher
    bf16, channels = compute_precision(accelerator) == "bf16", model.config.backbone_config.num_channels
    model.anchor_to(load_gram_teacher(source, args, channels, bf16=bf16, device=accelerator.device))


def load_gram_teacher(
    source: str, args: PreTrainingArguments, num_channels: int, *, bf16: bool, device: torch.device
) -> FrozenTeacher:
    """
    Load a Gram teacher and freeze it; for a run with heads, its averaged backbone.

    Args:
        source: a model, as `gram_teacher` of a recipe.
        args: arguments with the normalisation of the crops.
        num_channels: channels of the crops.
        bf16: whether it runs in bfloat16.

    Raises:
        `ValueError`: there is no such model, or it takes images with another number of channels.
    """
    loaded = load_teacher(source, "features", option="gram_teacher")
    network = loaded.network
    if isinstance(network, DINOv2ForPreTraining):
        network = network.teacher.backbone
    channels = getattr(network.config, "num_channels", num_channels)
    if channels != num_channels:
        raise ValueError(
            f"`gram_teacher` is {source}, a network for {channels} channels, but the crops have"
            f" {num_channels}; use a network for these."
        )
    normalization = {"own_mean": loaded.image_mean, "own_std": loaded.image_std}
    pixels = {"pixel_mean": args.image_mean, "pixel_std": args.image_std}
    return FrozenTeacher(network, bf16=bf16, **normalization, **pixels).to(device)
