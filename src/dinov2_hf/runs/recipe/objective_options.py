"""Options of a recipe for computing an objective, in addition to the configuration of the objective."""

from pathlib import Path

import torch
from accelerate import Accelerator

from ...pretraining.terms import term_options
from ...training.recomputation import recompute_blocks
from ..gram_teacher import anchor
from ..pretraining_arguments import PreTrainingArguments


def apply_objective_options(
    model: torch.nn.Module, args: PreTrainingArguments, accelerator: Accelerator, folder: Path, step: int
) -> None:
    """
    Set the chunks, keywords of loss terms, Gram teacher, packing of crops and recomputation of an objective.

    Args:
        folder: of the run.
        step: the step after which the run continues.

    Raises:
        `ValueError`: the Gram teacher cannot be loaded.
    """
    model.patch_chunk_size = args.patch_chunk_size
    model.term_options = term_options(args.loss_terms or {})
    anchor(model, args, accelerator, folder, step)
    model.is_packed = {"auto": None, "always": True, "never": False}[args.crop_packing]
    for student in model.students.values():
        recompute_blocks(student.backbone, args.gradient_checkpointing)
