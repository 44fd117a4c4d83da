"""
Full-state checkpoints that are either whole or not there, and the exports of a run.

A checkpoint is written under a temporary name, put on the disk and renamed when it is complete, so a process killed at
any moment, or a full disk, leaves the previous one usable. Its manifest of checksums tells a damaged one from a whole
one later. Position in the data is a number in the state, the images seen: the sampler is a function of it.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

from .checkpoint_manifest import find_damage, sync, sync_folder, write_manifest
from .run_stopped import RunStopped


logger = logging.getLogger(__name__)
STATE_FILE = "run_state.json"
# What a full disk raises: Python's files, safetensors, and torch.save, which has no class of its own for it.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


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


def replace_folder(accelerator: Accelerator, folder: Path, *writers: Callable[[Path], None]) -> None:
    """
    Let every process write into a temporary folder, then put that in the place of `folder`.

    Each of the `writers` is called with the temporary folder on every process, when all have finished the one before.
    The old folder is moved away only when the new one is complete and on the disk.

    Raises:
        RunStopped: on all processes, when one of them could not write. The temporary folder is removed then, and the
            old folder as it was.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")

    def make(_: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)

    def put_in_place(_: Path) -> None:
        sync_folder(partial)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)

    for write in (on_main(accelerator, make), *writers, on_main(accelerator, put_in_place)):
        complaint, error = None, None
        try:
            write(partial)
        except WRITE_ERRORS as caught:
            error = caught
            complaint = str(caught).strip().partition("\n")[0] or type(caught).__name__
        complaints = [text for text in gather_object([complaint]) if text]  # waits for everyone
        if complaints:
            free = shutil.disk_usage(folder.parent).free / 1e9 if folder.parent.exists() else 0.0
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
            accelerator.wait_for_everyone()
            raise RunStopped(
                f"{folder} could not be written ({complaints[0]}) on a disk with {free:.1f} GB free."
            ) from error


def on_main(accelerator: Accelerator, write: Callable[[Path], None]) -> Callable[[Path], None]:
    """`write` on the main process, nothing on the others."""
    return write if accelerator.is_main_process else lambda _: None


def save_checkpoint(accelerator: Accelerator, folder: Path, state: dict, save_total_limit: int) -> Path:
    """
    Save everything a run needs to go on: weights of student, teacher, heads and centres, optimizer, random state of
    every process, and `state`, which must hold `step`. Then delete what `remove_others` says.

    Returns:
        The folder of the checkpoint.

    Raises:
        RunStopped: on all processes, when it could not be written; earlier checkpoints are untouched.
    """
    checkpoint = folder / checkpoint_name(state["step"])

    def seal(partial: Path) -> None:
        (partial / STATE_FILE).write_text(json.dumps(state, indent=2))
        write_manifest(partial)

    replace_folder(
        accelerator, checkpoint, lambda partial: accelerator.save_state(str(partial)), on_main(accelerator, seal)
    )
    if accelerator.is_main_process:
        remove_others(checkpoint, save_total_limit)
    accelerator.wait_for_everyone()
    return checkpoint


def remove_others(checkpoint: Path, save_total_limit: int) -> None:
    """
    After `checkpoint` was saved: if it reads back whole, delete all but the `save_total_limit` newest, it included.

    Checkpoints of later steps go as well: the run was resumed from before them, and "latest" must mean its own. What a
    killed process left of its save goes, too.
    """
    damage = find_damage(checkpoint)
    if damage:
        logger.warning("%s was saved, but %s; older checkpoints are kept.", checkpoint, damage)
        return
    checkpoints = list_checkpoints(checkpoint.parent)
    position = checkpoints.index(checkpoint)
    earlier, later = checkpoints[: position + 1], checkpoints[position + 1 :]
    for path in [*later, *earlier[:-save_total_limit], *checkpoint.parent.glob(".step_*")]:
        shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(folder: Path, wanted: str) -> Path:
    """
    The checkpoint that `--resume_from_checkpoint` means: a path, or `"latest"` in `folder`, the newest that is whole.
    Reads it all, to compare checksums.

    Raises:
        `ValueError`: when there is none, or the one given by its path is damaged.
    """
    if wanted == "latest":
        damages = []
        for checkpoint in reversed(list_checkpoints(folder)):
            damage = find_damage(checkpoint)
            if damage is None:
                for complaint in damages:
                    logger.warning("%s; continuing from %s.", complaint, checkpoint.name)
                return checkpoint
            damages.append(f"{checkpoint} is damaged: {damage}")
        complaint = f" ({'; '.join(damages)})" if damages else ""
        raise ValueError(
            f'`resume_from_checkpoint` is "latest", but {folder} holds no complete checkpoint{complaint}; leave it out'
            " to start from the beginning."
        )
    if not (Path(wanted) / STATE_FILE).is_file():
        raise ValueError(
            f'`resume_from_checkpoint` is {wanted}, which is not a checkpoint folder; give one, or "latest".'
        )
    damage = find_damage(Path(wanted))
    if damage:
        raise ValueError(
            f'`resume_from_checkpoint` is {wanted}, which is damaged: {damage}; give another, or "latest" for the'
            " newest that is whole."
        )
    return Path(wanted)


def read_state(checkpoint: Path) -> dict:
    """The `state` that `save_checkpoint` was given."""
    return json.loads((checkpoint / STATE_FILE).read_text())


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Put the prepared model and optimizer and all random states back."""
    accelerator.load_state(str(checkpoint))
    # Accelerate goes on counting forward passes; a checkpoint is made between steps, whatever a step has of them now.
    accelerator.step = 0
