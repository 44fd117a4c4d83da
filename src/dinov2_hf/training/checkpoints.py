"""
Full-state checkpoints that are either whole or not there, and the exports of a run.

A checkpoint is written under a temporary name and renamed when it is complete, so a process killed at any moment
leaves the previous one usable. Position in the data is the step itself: the sampler is a function of it.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator


STATE_FILE = "run_state.json"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step_{step:07d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        path for path in folder.iterdir() if re.fullmatch(r"step_\d+", path.name) and (path / STATE_FILE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def replace_folder(accelerator: Accelerator, folder: Path, write: Callable[[Path], None]) -> None:
    """
    Let every process `write` into a temporary folder, then put that in the place of `folder`.

    The old folder is moved away only when the new one is complete.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    write(partial)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def save_checkpoint(accelerator: Accelerator, folder: Path, state: dict, save_total_limit: int) -> Path:
    """
    Save everything a run needs to go on: weights of student, teacher, heads and centres, optimizer, random state of
    every process, and `state`, which must hold `step`. Then delete the oldest beyond `save_total_limit`.

    Returns:
        The folder of the checkpoint.
    """
    checkpoint = folder / checkpoint_name(state["step"])

    def write(partial: Path) -> None:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            (partial / STATE_FILE).write_text(json.dumps(state, indent=2))

    replace_folder(accelerator, checkpoint, write)
    if accelerator.is_main_process:
        for old in list_checkpoints(folder)[:-save_total_limit]:
            shutil.rmtree(old)
    return checkpoint


def find_checkpoint(folder: Path, wanted: str) -> Path:
    """
    The checkpoint that `--resume_from_checkpoint` means: a path, or `"latest"` in `folder`.

    Raises:
        `ValueError`: when there is none.
    """
    if wanted == "latest":
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise ValueError(
                f'`resume_from_checkpoint` is "latest", but {folder} holds no complete checkpoint; leave it out to'
                " start from the beginning."
            )
        return checkpoints[-1]
    if not (Path(wanted) / STATE_FILE).is_file():
        raise ValueError(
            f'`resume_from_checkpoint` is {wanted}, which is not a checkpoint folder; give one, or "latest".'
        )
    return Path(wanted)


def read_state(checkpoint: Path) -> dict:
    """The `state` that `save_checkpoint` was given."""
    return json.loads((checkpoint / STATE_FILE).read_text())


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Put the prepared model and optimizer and all random states back."""
    accelerator.load_state(str(checkpoint))
