"""
`torch.compile` for the step of an objective: of the blocks of its networks, or of the whole step.

Blocks of one network share what is compiled for the first of them, so `"blocks"` is ready soon; and the gradients of
a block are there before those of the blocks below it, so that DDP sends them meanwhile. `"step"` compiles the backbone
of the teacher as one function, and students, heads and losses as another one.

Names of weights stay as they are. Shapes are compiled in, so for `"step"` all batches must have as many masked patches
(`PreTrainingCollator`, `pad_masked`). Numbers that schedules move become scalar tensors there; of other numbers each
value would be compiled by itself.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .objective import Objective


HOW = ("no", "blocks", "step")
# Of one function: student and teacher, each resolution, several students. Beyond 8, torch would compile no more of
# them and run the others as they are.
MOST_VARIANTS = 64


def compile_objective(model: Objective, how: str) -> None:
    """
    Let `torch.compile` make the step of `model` faster, from its first call on; before the model is spread over
    processes and after recomputing in the backward pass is turned on.

    Args:
        how: one of `HOW`.
    """
    if how == "no":
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_VARIANTS)
    teacher = getattr(model.teacher_role, "backbone", None)
    if how == "blocks":
        networks = [student.backbone for student in model.students.values()]
        for network in [*networks, *([] if teacher is None else [teacher])]:
            for block in blocks_of(network):
                block.compile(dynamic=False)
        return
    if teacher is not None:
        teacher.compile(dynamic=False)
    compare = torch.compile(model.compare, dynamic=False)

    def compare_compiled(crops: Any, tokens: Any, weights: Mapping, temperature: float, group: Any) -> dict:
        def number(value: float) -> torch.Tensor:
            return torch.full((), value, device=tokens.cls.device)

        numbers = {name: number(weight) for name, weight in weights.items()}
        return compare(crops, tokens, numbers, number(temperature), group)

    model.compare = compare_compiled


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a network of transformers; itself, where it marks none."""
    blocks = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    return blocks or [network]


def without_compiling(how: str) -> AbstractContextManager:
    """Where networks that were compiled see other images than those of a step, and must not be compiled for them."""
    return nullcontext() if how == "no" else torch.compiler.set_stance("force_eager")


def check_compiler(how: str, device: torch.device) -> None:
    """
    Raises:
        `ValueError`: what `torch.compile` needs to make code for this device is not here.
    """
    if how == "no":
        return
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                f'`compile` is "{how}", which needs Triton for a GPU, but there is none that works with this one;'
                ' install it (pip install triton), or set `compile` to "no".'
            )
    # Triton builds its launchers with one too.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f'`compile` is "{how}", which needs a C++ compiler, but there is no {compiler}; install one (apt install'
            ' g++), name yours in the variable CXX, or set `compile` to "no".'
        )
