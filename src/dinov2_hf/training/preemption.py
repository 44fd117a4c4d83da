"""
Signals that ask a run to stop: SIGTERM (preemption, shutdown, launchers) and SIGUSR1 (batch systems, on request).

The signal is only noted, and becomes a vote of its process in the next step (see votes.py). So all processes stop
after the same step, even if they get the signal at different moments, or only one of them gets it.
"""

import signal
from types import FrameType

from .run_stopped import RunPreempted


PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """
    Within its `with` block, the signals are noted and do not end the process. This also holds after a `RunPreempted`,
    because a launcher sends SIGTERM after the first process has ended, while others are still closing their files and
    trackers. It must be entered in the main thread.

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
