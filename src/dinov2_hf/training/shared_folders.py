"""A folder that all processes of a run write together: it is there as a whole, or not at all."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ..atomic_files import WRITE_ERRORS, put_in_place, unfinished
from ..output_folders import write_marker
from .checkpoint_manifest import sync, sync_folder
from .run_stopped import RunStopped


def replace_folder(
    accelerator: Accelerator,
    folder: Path,
    *writers: Callable[[Path], None],
    kind: str | None = None,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """
    Put a folder that all processes have written in the place of `folder`, when it is complete and on the disk.

    Args:
        writers: each is called with the unfinished folder on every process, when all have finished the one before.
        kind: that of the marker, which names all files; `None` writes none.
        check: called with `folder` where one is there, before anything is written; it raises a `ValueError` when that
            may not be replaced.

    Raises:
        RunStopped: on all processes, when one of them could not write. The unfinished folder is removed then, and the
            old folder as it was.
    """
    with ExitStack() as stack:
        partial: list[Path | None] = [None]

        def make() -> None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                check(folder)
            partial[0] = stack.enter_context(unfinished(folder)) / folder.name
            partial[0].mkdir()

        def finish() -> None:
            if kind is not None:
                write_marker(partial[0], kind, list_files=True)
            sync_folder(partial[0])
            put_in_place(partial[0], folder)
            sync(folder.parent)

        _together(accelerator, folder, make if accelerator.is_main_process else lambda: None)
        partial = broadcast_object_list(partial)
        for write in writers:
            _together(accelerator, folder, lambda write=write: write(partial[0]))
        _together(accelerator, folder, finish if accelerator.is_main_process else lambda: None)


def on_main(accelerator: Accelerator, write: Callable[[Path], None]) -> Callable[[Path], None]:
    """`write` on the main process, nothing on the others."""
    return write if accelerator.is_main_process else lambda _: None


def _together(accelerator: Accelerator, folder: Path, work: Callable[[], None]) -> None:
    """Do it on every process, and stop all when one of them failed."""
    complaint, cause = None, None
    try:
        work()
    except (*WRITE_ERRORS, ValueError) as error:
        cause, complaint = error, str(error).strip().partition("\n")[0] or type(error).__name__
    complaints = [text for text in gather_object([complaint]) if text]  # waits for everyone
    if complaints:
        free = shutil.disk_usage(folder.parent).free / 1e9 if folder.parent.exists() else 0.0
        raise RunStopped(
            f"{folder} could not be written ({complaints[0]}) on a disk with {free:.1f} GB free."
        ) from cause
