"""Runs that end before their last step: why, with which exit code, and how to go on."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator

from ..public_names import without_secrets
from .distributed import end_run


# EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again.
PREEMPTED_EXIT_CODE = 75
# What shells give to a program that SIGINT (Ctrl-C) ended.
INTERRUPTED_EXIT_CODE = 130


class RunStopped(Exception):
    """A run that cannot go on; its message says why, and what is left. Raised on all processes together."""

    exit_code = 1


class RunPreempted(RunStopped):
    """A run that was asked to make room, and has saved a checkpoint."""

    exit_code = PREEMPTED_EXIT_CODE


class RunInterrupted(RunStopped):
    """A run that Ctrl-C ended at once."""

    exit_code = INTERRUPTED_EXIT_CODE


@contextmanager
def disk_and_keyboard_stop_run() -> Iterator[None]:
    """Turn an `OSError` for want of space (disk, quota, file size limit), and Ctrl-C, into a `RunStopped`."""
    try:
        yield
    except KeyboardInterrupt:
        raise RunInterrupted("Ctrl-C ended the run; steps since the last checkpoint are lost.") from None
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # of the sentence that `atomic_files` says
        if getattr(cause, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunStopped(f"a file could not be written: {str(error).rstrip('.')}.") from error


@contextmanager
def bad_data_stops_run() -> Iterator[None]:
    """
    Turn a `ValueError` about the data, such as too many broken images in a row, into a `RunStopped`; but not that of a
    full disk, which is `disk_and_keyboard_stop_run`'s.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise RunStopped(str(error)) from error


def exit_stopped(accelerator: Accelerator, stop: RunStopped, checkpoints: list[Path]) -> NoReturn:
    """
    Leave the process with the exit code and sentence of `stop`, and the advice how to continue.

    Args:
        checkpoints: what can be continued from, oldest first.
    """
    advice = f" --resume_from_checkpoint latest continues from {checkpoints[-1]}." if checkpoints else ""
    why = without_secrets(str(stop))
    if stop.exit_code == RunStopped.exit_code:
        sys.exit(f"stopped: {why}{advice}")
    if accelerator.is_main_process:
        sys.stderr.write(f"\nstopped: {why}{advice}\n")
    if isinstance(stop, RunPreempted):  # Ctrl-C may have come in the middle of what all processes do together
        end_run(accelerator)
    sys.exit(stop.exit_code)
