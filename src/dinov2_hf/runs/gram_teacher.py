"""The network that a run keeps the similarities of patches of (Gram anchoring), on the device of the training."""

import torch

from ..pretraining import DINOv2ForPreTraining
from ..pretraining.frozen_teacher import FrozenTeacher
from .distillation_teacher import load_teacher
from .pretraining_arguments import PreTrainingArguments


def load_gram_teacher(
    args: PreTrainingArguments, num_channels: int, *, bf16: bool, device: torch.device
) -> FrozenTeacher:
    """
    Read `args.gram_teacher` and freeze it; of a run with heads, its averaged backbone.

    Args:
        num_channels: of the crops.
        bf16: whether it runs in bfloat16.

    Raises:
        `ValueError`: there is no such model, or it takes images of other channels.
    """
    loaded = load_teacher(args.gram_teacher, "features", option="gram_teacher")
    network = loaded.network
    if isinstance(network, DINOv2ForPreTraining):
        network = network.teacher.backbone
    channels = getattr(network.config, "num_channels", num_channels)
    if channels != num_channels:
        raise ValueError(
            f"`gram_teacher` is {args.gram_teacher}, a network for {channels} channels, but the crops have"
            f" {num_channels}; use a network for these."
        )
    normalization = {"own_mean": loaded.image_mean, "own_std": loaded.image_std}
    pixels = {"pixel_mean": args.image_mean, "pixel_std": args.image_std}
    return FrozenTeacher(network, bf16=bf16, **normalization, **pixels).to(device)
