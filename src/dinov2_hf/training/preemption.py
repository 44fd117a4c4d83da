"""
Signals that ask a run to make room: SIGTERM (preemption, shutdown, launchers) and SIGUSR1 (batch systems, on request).

The signal only leaves a note. The loop reads it once in each step, in the same all-reduce that decides whether the
step is finite, so that all processes stop after the same step although they are signalled at different moments, or
only one of them is.
"""

import signal
from types import FrameType

import torch
from accelerate import Accelerator

from .run_stopped import RunPreempted


PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """
    Within its `with` block, the signals are noted rather than deadly; and after it when it is left by `RunPreempted`,
    because a launcher whose first process has left sends SIGTERM to those that are still closing their files and
    trackers. To be entered in the main thread.

    Attributes:
        received: name of the last signal, such as `"SIGTERM"`, or `None`.
    """

    def __init__(self):
        self.received: str | None = None

    def __enter__(self) -> "Preemption":
        self._handlers_before = {number: signal.signal(number, self._note) for number in PREEMPTION_SIGNALS}
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_) -> None:
        if error_type is not None and issubclass(error_type, RunPreempted):
            return
        for number, handler in self._handlers_before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def count_processes(accelerator: Accelerator, *conditions: torch.Tensor | bool) -> list[int]:
    """
    The number of processes on which each condition holds, a bool or a scalar tensor on the device; the same on all of
    them. One all-reduce, for which the host waits.
    """
    flags = torch.stack([torch.as_tensor(condition, device=accelerator.device).float() for condition in conditions])
    return [round(count) for count in accelerator.reduce(flags, reduction="sum").tolist()]
