"""How an objective is computed, as a recipe says beside the configuration of the objective."""

import torch
from accelerate import Accelerator

from ..pretraining.terms import term_options
from ..training.backends import compute_precision
from ..training.recomputation import recompute_blocks
from .gram_teacher import load_gram_teacher
from .pretraining_arguments import PreTrainingArguments


def apply_objective_options(model: torch.nn.Module, args: PreTrainingArguments, accelerator: Accelerator) -> None:
    """
    Tell an objective chunks, keywords of loss terms, the network that Gram anchoring keeps to, how crops are run, and
    what its backward pass makes again.

    Raises:
        `ValueError`: the Gram teacher cannot be loaded.
    """
    model.patch_chunk_size = args.patch_chunk_size
    model.term_options = term_options(args.loss_terms or {})
    if args.gram_teacher:
        bf16, channels = compute_precision(accelerator) == "bf16", model.config.backbone_config.num_channels
        model.anchor_to(load_gram_teacher(args, channels, bf16=bf16, device=accelerator.device))
    model.is_packed = {"auto": None, "always": True, "never": False}[args.crop_packing]
    for student in model.students.values():
        recompute_blocks(student.backbone, args.gradient_checkpointing)
