"""A folder that all processes of a run write together. It appears whole or not at all."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ...atomic_files import WRITE_ERRORS, put_in_place, unfinished
from ...output_folders import write_marker
from ..checkpointing.checkpoint_manifest import sync, sync_folder
from ..run_stopped import RunStopped


def replace_folder(
    accelerator: Accelerator,
    folder: Path,
    write: Callable[[Path], None],
    *,
    kind: str,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """
    Replace `folder` by a folder that all processes have written, when that is complete and on the disk.

    Args:
        write: called with the unfinished folder on every process.
        kind: kind in its marker, which lists all files.
        check: called with `folder` if it exists, before anything is written; it raises a `ValueError` if `folder` may
            not be replaced.

    Raises:
        RunStopped: on all processes, if one of them could not write. Then the unfinished folder is removed, and the
            old folder is not changed.
    """
    partial, held = write_unfinished(accelerator, folder, write, check=check)

    def finish() -> None:
        if accelerator.is_main_process:
            write_marker(partial, kind, list_files=True)
            put_on_disk(partial, folder)

    with held:
        together(accelerator, folder, finish)


def write_unfinished(
    accelerator: Accelerator, folder: Path, write: Callable[[Path], None], *, check: Callable[[Path], None]
) -> tuple[Path, ExitStack]:
    """
    The unfinished folder that all processes have written, for `put_on_disk` on the main process, and a context that
    removes its leftovers when it is closed. Arguments and errors are those of `replace_folder`.
    """
    with ExitStack() as stack:
        partial: list[Path | None] = [None]

        def make() -> None:
            if not accelerator.is_main_process:
                return
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                check(folder)
            partial[0] = stack.enter_context(unfinished(folder)) / folder.name
            partial[0].mkdir()

        together(accelerator, folder, make)
        partial = broadcast_object_list(partial)
        together(accelerator, folder, lambda: write(partial[0]))
        return partial[0], stack.pop_all()


def put_on_disk(partial: Path, folder: Path) -> None:
    """Wait until `partial` is on the disk, move it to its place, and wait until this is on the disk."""
    sync_folder(partial)
    put_in_place(partial, folder)
    sync(folder.parent)


def together(accelerator: Accelerator, folder: Path, work: Callable[[], None]) -> None:
    """Run `work`, which writes `folder`, on every process. If it fails on one, all stop with a `RunStopped`."""
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
