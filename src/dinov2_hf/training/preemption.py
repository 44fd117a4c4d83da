"""
Signals that ask a run to make room: SIGTERM (preemption, shutdown, launchers) and SIGUSR1 (batch systems, on request).

The signal only leaves a note, which is a vote of its process in the next step (see votes.py). So all processes stop
after the same step, although they are signalled at different moments, or only one of them is.
"""

import signal
from types import FrameType

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
