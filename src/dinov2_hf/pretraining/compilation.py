"""
`torch.compile` for the step of an objective: for the blocks of its networks, or for the whole step.

Blocks of one network share the code that is compiled for the first of them, so `"blocks"` compiles quickly. The
gradients of a block are ready before the gradients of the blocks below it, so DDP can send them meanwhile. `"step"`
compiles the backbone of the teacher as one function, and students, heads and losses as another one.

Names of weights do not change. Shapes are constants of compiled code, so for `"step"` all batches must have the same
number of masked patches (`PreTrainingCollator`, `pad_masked`). Numbers that follow schedules become scalar tensors
there. Otherwise each of their values would be compiled separately.
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
# Compiled versions of one function: for student and teacher, each resolution, several students. Beyond the default of
# 8, torch would run the others without compiling them.
MOST_VARIANTS = 64


def compile_objective(model: Objective, how: str) -> None:
    """
    Compile the step of `model` with `torch.compile`, at its first call. Call this before the model is distributed over
    processes, and after gradient checkpointing is turned on.

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
    """The transformer blocks of a network of transformers, or the network itself if it marks none."""
    blocks = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    return blocks or [network]


def without_compiling(how: str) -> AbstractContextManager:
    """A context in which compiled networks run on other images than those of a step, without compiling for them."""
    return nullcontext() if how == "no" else torch.compiler.set_stance("force_eager")


def check_compiler(how: str, device: torch.device) -> None:
    """
    Raises:
        `ValueError`: something that `torch.compile` needs for this device is missing.
    """
    if how == "no":
        return
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                f'`compile` is "{how}", which needs Triton for a GPU, but there is none that works with this GPU;'
                ' install it (pip install triton), or set `compile` to "no".'
            )
    # Triton also builds its launchers with a C++ compiler.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f'`compile` is "{how}", which needs a C++ compiler, but there is no {compiler}; install one (apt install'
            ' g++), name yours in the variable CXX, or set `compile` to "no".'
        )
