"""Runs that end before their last step: why, with which exit code, and how to go on."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator

from .distributed import end_run


# EX_TEMPFAIL of sysexits.h: nothing is wrong, start it again.
PREEMPTED_EXIT_CODE = 75


class RunStopped(Exception):
    """A run that cannot go on; its message says why, and what is left. Raised on all processes together."""

    exit_code = 1


class RunPreempted(RunStopped):
    """A run that was asked to make room, and has saved a checkpoint."""

    exit_code = PREEMPTED_EXIT_CODE


@contextmanager
def full_disk_stops_run() -> Iterator[None]:
    """Turn an `OSError` for want of space (disk, quota, file size limit) into a `RunStopped`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunStopped(f"a file could not be written: {error}.") from error


def exit_stopped(accelerator: Accelerator, stop: RunStopped, checkpoints: list[Path]) -> NoReturn:
    """
    Leave the process with the exit code and sentence of `stop`, and the advice how to continue.

    Args:
        checkpoints: what can be continued from, oldest first.
    """
    advice = f" --resume_from_checkpoint latest continues from {checkpoints[-1]}." if checkpoints else ""
    if not isinstance(stop, RunPreempted):
        sys.exit(f"stopped: {stop}{advice}")
    if accelerator.is_main_process:
        sys.stderr.write(f"stopped: {stop}{advice}\n")
    end_run(accelerator)
    sys.exit(stop.exit_code)
