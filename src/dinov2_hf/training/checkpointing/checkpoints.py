"""
Full-state checkpoints, which are either complete or do not exist.

A checkpoint appears under its name when it is complete and on the disk. So a process killed at any moment, or a full
disk, leaves the previous one usable. Its manifest of checksums shows later whether it is damaged, and which files
belong to it. The position in the data is a number in the state, the images seen so far, and the sampler is a function
of it. For a stream, each process also has its own position.
"""

import json
import logging
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from ...atomic_files import remove_leftovers
from ..processes.shared_folders import put_on_disk, together, write_unfinished
from .checkpoint_folders import CHECKPOINT_NAME, LATEST, STATE_FILE, checkpoint_name, list_checkpoints, read_state
from .checkpoint_manifest import find_damage, foreign_files, remove_listed, write_manifest
from .checkpoint_pickles import data_only, refuse_code
from .random_states import check_restored, find_damage_of_random_states


logger = logging.getLogger(__name__)
# Errors for a checkpoint of another network, or with wrong content: of torch, of safetensors, and of the readers of
# shards, whose error is not even an Exception.
LOAD_ERRORS = (
    OSError, RuntimeError, ValueError, KeyError, AttributeError, pickle.UnpicklingError, SafetensorError,
    CheckpointException,
)  # fmt: skip


class CheckpointSaver:
    """
    Saves checkpoints of a run into `folder`. The run waits while files are written. Then the run continues, and a
    thread of the main process computes checksums, waits for the disk, moves the files to their place and reads them
    back.

    Args:
        save_total_limit: number of checkpoints to keep, see `remove_others`.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, save_total_limit: int):
        self.accelerator, self.folder, self.save_total_limit = accelerator, folder, save_total_limit
        self._background = ThreadPoolExecutor(1)
        self._completing: Future[None] | None = None
        self._checkpoint = folder

    def save(self, state: dict, *, kept: int | None = None, data_position: list | None = None) -> Path:
        """
        Save everything that a run needs to continue: weights of student, teacher, heads and centres, optimizer, random
        state of every process, and `state`, which must contain `step`. The previous checkpoint is completed first.

        Args:
            kept: a step whose checkpoint is not deleted, in addition to the newest ones.
            data_position: the position of this process in the data; see `read_data_position`.

        Raises:
            RunStopped: on all processes, if this checkpoint or the previous one could not be written; earlier
                checkpoints are not changed.
        """
        self.wait()
        self._checkpoint = self.folder / checkpoint_name(state["step"])
        partial, held = write_unfinished(
            self.accelerator,
            self._checkpoint,
            lambda partial: self._write(partial, data_position),
            check=refuse_foreign,
        )
        if self.accelerator.is_main_process:
            text = json.dumps(state, indent=2)
            self._completing = self._background.submit(self._complete, self._checkpoint, partial, held, text, kept)
        return self._checkpoint

    def _write(self, partial: Path, data_position: list | None) -> None:
        self.accelerator.save_state(str(partial))
        if data_position is not None:
            _data_position_file(partial, self.accelerator.process_index).write_text(json.dumps(data_position))

    def has_failed(self) -> bool:
        """Whether the background work of this process has failed. `wait` raises the error."""
        return bool(self._completing and self._completing.done() and self._completing.exception())

    def wait(self) -> None:
        """
        Wait until the last checkpoint is complete. Every process must call it.

        Raises:
            RunStopped: on all processes, if it could not be written; earlier checkpoints are not changed.
        """
        completing, self._completing = self._completing, None
        together(self.accelerator, self._checkpoint, completing.result if completing else lambda: None)

    def close(self) -> None:
        """Finish the background work of this process, whatever the others do. Nothing can be saved afterwards."""
        self._background.shutdown()

    def _complete(self, checkpoint: Path, partial: Path, held: ExitStack, state: str, kept: int | None) -> None:
        try:
            (partial / STATE_FILE).write_text(state)
            write_manifest(partial)
            put_on_disk(partial, checkpoint)
        finally:
            held.close()
        remove_others(checkpoint, self.save_total_limit, kept)


def remove_others(checkpoint: Path, save_total_limit: int, kept: int | None = None) -> None:
    """
    After `checkpoint` was saved and read back correctly, delete all checkpoints except the `save_total_limit` newest,
    including it, and the one of the step `kept`.

    Checkpoints of later steps are deleted too: the run was resumed from before them, and "latest" must mean its own.
    So are incomplete checkpoints of killed processes. Only files that a run wrote are deleted.
    """
    damage = find_damage(checkpoint)
    if damage:
        logger.warning("%s was saved, but %s; older checkpoints are kept.", checkpoint, damage)
        return
    checkpoints = list_checkpoints(checkpoint.parent)
    position = checkpoints.index(checkpoint)
    earlier, later = checkpoints[: position + 1], checkpoints[position + 1 :]
    spared = [] if kept is None else [checkpoint_name(kept)]
    for path in [*later, *earlier[:-save_total_limit]]:
        if path.name not in spared:
            remove_checkpoint(path)
    remove_leftovers(checkpoint.parent, CHECKPOINT_NAME)


def remove_checkpoint(checkpoint: Path) -> None:
    """Delete the files that its manifest lists. From the first deletion on, it no longer counts as a checkpoint."""
    if not checkpoint.is_symlink():  # a link was made by the user
        (checkpoint / STATE_FILE).unlink(missing_ok=True)
        remove_listed(checkpoint)


def refuse_foreign(checkpoint: Path) -> None:
    """`ValueError` if a checkpoint contains files that no run wrote, or is a link: it may not be replaced."""
    foreign = foreign_files(checkpoint)
    if checkpoint.is_symlink() or foreign:
        what = f"holds {foreign[0]}, which dinov2_hf did not write" if foreign else "is a symbolic link"
        raise ValueError(f"{checkpoint} would be replaced, but it {what}; move it away.")


def find_checkpoint(folder: Path, wanted: str) -> Path:
    """
    The checkpoint that `--resume_from_checkpoint` means: a path, or `"latest"`, the newest complete one in `folder`.
    It is read completely, to compare checksums, and nothing in it is executed.

    Raises:
        `ValueError`: there is none, the one given by its path is damaged, or it contains code.
    """
    checkpoint = _find(folder, wanted)
    refuse_code(checkpoint)
    damage = find_damage_of_random_states(checkpoint, read_state(checkpoint))
    if damage:
        raise ValueError(f"{checkpoint} cannot be continued exactly: {damage}; continue from another checkpoint.")
    return checkpoint


def checkpoints_meant(folder: Path, wanted: str) -> list[Path]:
    """
    The checkpoints that `--resume_from_checkpoint` may mean, without reading them: the one at that path, or for
    `"latest"` all in `folder` (for `a/latest` all in `a`), the newest first.

    Raises:
        `ValueError`: there is none.
    """
    if _is_latest(wanted):
        folder = folder if wanted == LATEST else Path(wanted).parent
        found = list_checkpoints(folder)[::-1]
        if not found:
            raise ValueError(_none_complete(wanted, folder))
        return found
    if not (Path(wanted) / STATE_FILE).is_file():
        raise ValueError(
            f'--resume_from_checkpoint is {wanted}, which is not a checkpoint folder; give one, or "latest".'
        )
    return [Path(wanted)]


def _find(folder: Path, wanted: str) -> Path:
    damages: list[str] = []
    for checkpoint in checkpoints_meant(folder, wanted):
        damage = find_damage(checkpoint)
        if damage is None:
            for complaint in damages:
                logger.warning("%s; continuing from %s.", complaint, checkpoint.name)
            return checkpoint
        damages.append(f"{checkpoint} is damaged: {damage}")
    if _is_latest(wanted):
        raise ValueError(_none_complete(wanted, checkpoint.parent, f" ({'; '.join(damages)})"))
    raise ValueError(
        f'--resume_from_checkpoint is {wanted}, which is damaged: {damage}; give another, or "latest" for the newest'
        " that is whole."
    )


def _is_latest(wanted: str) -> bool:
    """Whether "latest" is meant. The word alone never means a folder of that name in the working directory."""
    return wanted == LATEST or (Path(wanted).name == LATEST and not Path(wanted).is_dir())


def _none_complete(wanted: str, folder: Path, complaint: str = "") -> str:
    return (
        f'--resume_from_checkpoint is "{wanted}", but {folder} holds no complete checkpoint{complaint}; leave it out'
        " to start from the beginning, with --overwrite_output_dir where a run is there already."
    )


def read_data_position(checkpoint: Path, process_index: int) -> list | None:
    """The position in the data that this process saved; None if it saved none."""
    path = _data_position_file(checkpoint, process_index)
    return json.loads(path.read_text()) if path.is_file() else None


def _data_position_file(checkpoint: Path, process_index: int) -> Path:
    return checkpoint / f"data_position_{process_index}.json"


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """
    Restore the prepared model and optimizer and all random states. Only data is read.

    Raises:
        ValueError: the checkpoint belongs to another network, or contains more than data.
    """
    try:
        with data_only():
            accelerator.load_state(str(checkpoint))
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{checkpoint} could not be put into this run ({reason}); continue with the recipe that it was made with."
        ) from error
    # Accelerate continues its count of forward passes. A checkpoint is between steps, whatever passes a step has now.
    accelerator.step = 0
    check_restored(checkpoint, accelerator.process_index)
