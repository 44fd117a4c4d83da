"""Errors of runs that end before their last step, with the reason and the exit code."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# EX_TEMPFAIL of sysexits.h: there is no error, and the run can be started again.
PREEMPTED_EXIT_CODE = 75
# The exit code that shells give to a program that SIGINT (Ctrl-C) ended.
INTERRUPTED_EXIT_CODE = 130


class RunStopped(Exception):
    """A run that cannot continue. The message says why, and what is saved. It is raised on all processes together."""

    exit_code = 1


class RunPreempted(RunStopped):
    """A run that was asked to stop, and has saved a checkpoint."""

    exit_code = PREEMPTED_EXIT_CODE


class RunInterrupted(RunStopped):
    """A run that Ctrl-C ended at once."""

    exit_code = INTERRUPTED_EXIT_CODE


def as_run_stopped(error: BaseException) -> RunStopped | None:
    """A `RunStopped` unchanged, a new one for Ctrl-C or for a full disk, quota or file, or `None`."""
    if isinstance(error, RunStopped):
        return error
    if isinstance(error, KeyboardInterrupt):
        return RunInterrupted("Ctrl-C ended the run; steps since the last checkpoint are lost.")
    cause = error if isinstance(error, OSError) else error.__cause__  # of the sentence that `atomic_files` says
    if isinstance(error, OSError | ValueError) and getattr(cause, "errno", None) in FULL:
        return RunStopped(f"a file could not be written: {str(error).rstrip('.')}.")
    return None


@contextmanager
def bad_data_stops_run() -> Iterator[None]:
    """
    Turn a `ValueError` about the data, such as too many broken images in a row, into a `RunStopped`. The error of a
    full disk is not changed here; `as_run_stopped` handles it.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise RunStopped(str(error)) from error
