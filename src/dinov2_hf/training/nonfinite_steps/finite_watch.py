"""Finds the origin of non-finite numbers: the forward or backward operations that made them from finite ones."""

import math
import sys
import traceback
from bisect import bisect_right
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


# Operations that return uninitialised memory.
UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Birthplace:
    """
    An operation that made non-finite numbers from finite ones.

    Args:
        operation: operation of torch, such as "log"; in the backward pass also the gradient that it was part of.
        module: path of the innermost module that was running in the forward pass; "" outside of all modules.
        line: file and line of Python in the forward pass; "" if there was none.
        is_backward: whether it was part of the backward pass.
    """

    operation: str
    module: str
    line: str
    is_backward: bool

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        line = f" ({self.line})" if self.line else ""
        return f"{'backward' if self.is_backward else 'forward'}: {self.operation}{where}{line}"


class FiniteWatch(TorchDispatchMode):
    """
    Inside this context, `birthplaces` collects the first operations that make non-finite numbers from finite ones, in
    their order. Later ones are consequences of these. It is slow, because it waits for each operation.

    It uses no forward hooks of modules, because hooks would make blocks use another path, which changes random
    numbers.

    Args:
        module: the module whose parts are named.
        most: the largest number of operations that are recorded.
    """

    def __init__(self, module: nn.Module, most: int = 3):
        super().__init__()
        self.most, self.birthplaces = most, []
        self._paths = {part: path for path, part in module.named_modules()}
        self._running: list[str] = []
        # The places in the forward pass where the nodes of the backward pass were made, by sequence number.
        self._numbers: list[int] = []
        self._made: list[tuple[str, str]] = []
        self._held = ExitStack()

    def __enter__(self) -> "FiniteWatch":
        self._held.callback(register_module_forward_pre_hook(self._start).remove)
        self._held.callback(register_module_forward_hook(self._end, always_call=True).remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._held.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_backward = torch._C._current_graph_task_id() != -1
        if not is_backward:
            self._note()
        if len(self.birthplaces) >= self.most or func.overloadpacket.__name__ in UNWRITTEN:
            return func(*args, **kwargs)
        inputs_finite = _all_finite((args, kwargs)) if func._schema.is_mutable else None
        result = func(*args, **kwargs)
        if _all_finite(result):
            return result
        if inputs_finite is None:
            inputs_finite = _all_finite((args, kwargs))
        if inputs_finite:
            self.birthplaces.append(self._place(func.overloadpacket.__name__, is_backward))
        return result

    def _start(self, module: nn.Module, _) -> None:
        self._running.append(self._paths.get(module, type(module).__name__))

    def _end(self, *_) -> None:
        self._running.pop()

    def _note(self) -> None:
        """Record the node of an operation. It is made right before the operation, and gets a number."""
        number = torch._C._autograd._get_sequence_nr()
        if not self._numbers or number > self._numbers[-1]:
            self._numbers.append(number)
            self._made.append((self._module(), _line()))

    def _place(self, operation: str, is_backward: bool) -> Birthplace:
        if not is_backward:
            return Birthplace(operation, self._module(), _line(), False)
        node = torch._C._current_autograd_node()
        if node is None:
            return Birthplace(operation, "", "", True)
        index = bisect_right(self._numbers, node._sequence_nr())
        module, line = self._made[index] if index < len(self._made) else ("", "")
        return Birthplace(f"{operation} of {node.name()}", module, line, True)

    def _module(self) -> str:
        return self._running[-1] if self._running else ""


def _all_finite(values: Any) -> bool:
    """Whether all tensors and plain numbers in a structure are finite."""
    for value in tree_leaves(values):
        if isinstance(value, torch.Tensor):
            if value.is_floating_point() and not value.isfinite().all():
                return False
        elif isinstance(value, float) and not math.isfinite(value):
            return False
    return True


def _line() -> str:
    """The running line of Python outside of torch, with two folders of its path."""
    for frame, number in traceback.walk_stack(sys._getframe()):
        name = frame.f_code.co_filename
        if name != __file__ and not name.startswith((TORCH, "<")):
            return f"{'/'.join(Path(name).parts[-3:])}:{number}"
    return ""
