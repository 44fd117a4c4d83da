"""Ends a run before its last step: a sentence on standard error, an exit code, and how to continue."""

import sys
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError

from ...public_names import without_secrets
from ...training.checkpointing.checkpoint_folders import CHECKPOINTS, list_checkpoints
from ...training.monitoring.collapse import COLLAPSED_EXIT_CODE, RunCollapsed
from ...training.processes.distributed import end_run
from ...training.run_stopped import INTERRUPTED_EXIT_CODE, RunPreempted, RunStopped, as_run_stopped


if TYPE_CHECKING:
    from ..run import Run


def end_in_words(error: BaseException, run: "Run | None") -> None:
    """
    End the process as `error` requires. Return if it is a fault of the program, which needs its traceback.

    Args:
        run: `None` if it could not be set up.
    """
    if run is None or not run.is_training:
        return _before_or_after_training(error)
    run.saver.close()  # so that its checkpoint exists and can be named
    if isinstance(error, RunCollapsed):
        run.draw_curves()
        print(f"\nstopped: {error} {error.advice(run.output_dir / 'checkpoints')}", file=sys.stderr)
        end_run(run.accelerator)
        sys.exit(COLLAPSED_EXIT_CODE)
    if stop := as_run_stopped(error):
        _in_training(stop, run)


def _before_or_after_training(error: BaseException) -> None:
    """An error in recipe, flags or data before anything is computed, or a failed upload."""
    if isinstance(error, KeyboardInterrupt):
        sys.stderr.write("\nstopped: Ctrl-C ended the run.\n")
        sys.exit(INTERRUPTED_EXIT_CODE)
    if isinstance(error, StrictDataclassError):  # from a configuration, around the sentence
        error = error.__cause__
    if isinstance(error, ValueError):
        sys.exit(f"error: {without_secrets(str(error))}")


def _in_training(stop: RunStopped, run: "Run") -> None:
    checkpoints = list_checkpoints(run.output_dir / CHECKPOINTS)
    advice = f" --resume_from_checkpoint latest continues from {checkpoints[-1]}." if checkpoints else ""
    why = without_secrets(str(stop))
    if stop.exit_code == RunStopped.exit_code:
        sys.exit(f"stopped: {why}{advice}")
    if run.accelerator.is_main_process:
        sys.stderr.write(f"\nstopped: {why}{advice}\n")
    if isinstance(stop, RunPreempted):  # Ctrl-C may have interrupted a collective
        end_run(run.accelerator)
    sys.exit(stop.exit_code)
