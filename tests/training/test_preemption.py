"""Signals are noted, and only for a while."""

import os
import signal

import pytest

from dinov2_hf.training.preemption import PREEMPTION_SIGNALS, Preemption
from dinov2_hf.training.run_stopped import RunPreempted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    others = []
    before = signal.signal(number, lambda *_: others.append(number))
    try:
        with Preemption() as preemption:
            assert preemption.received is None
            os.kill(os.getpid(), number)
            assert preemption.received == number.name
        assert others == []
        os.kill(os.getpid(), number)
        assert others == [number]
    finally:
        signal.signal(number, before)


def test_a_run_that_leaves_for_a_signal_is_not_killed_by_the_next():
    before = {number: signal.getsignal(number) for number in PREEMPTION_SIGNALS}
    try:
        with pytest.raises(RunPreempted), Preemption() as preemption:
            raise RunPreempted
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.received == "SIGTERM"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
