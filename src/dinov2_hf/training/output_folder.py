"""The folder that a run writes to: free, or its own to continue."""

import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .checkpoints import find_checkpoint
from .students import STUDENTS_FOLDER


RUN_FILES = (
    "checkpoints", "model", "pretraining_model", STUDENTS_FOLDER, "trackers", "recipe.yaml", "metrics.jsonl",
    "metrics.json", "training_curves.png", "patch_pca.png", "skipped_images*.jsonl", "nonfinite_steps.jsonl",
)  # fmt: skip


def run_files(output_dir: Path) -> list[Path]:
    """What a run left in the folder."""
    return [path for pattern in RUN_FILES for path in output_dir.glob(pattern)]


def find_start(
    accelerator: Accelerator, output_dir: Path, resume_from_checkpoint: str | None, overwrite: bool
) -> Path | None:
    """
    The checkpoint to resume from, or `None` for a fresh start. Nothing is written or deleted. The main process looks,
    and all get its answer.

    Raises:
        `ValueError`: when there is no such checkpoint, or when a fresh start would meet an earlier run.
    """
    answer: list[Path | ValueError | None] = [None]
    if accelerator.is_main_process:
        try:
            answer = [_look(output_dir, resume_from_checkpoint, overwrite)]
        except ValueError as error:
            answer = [error]
    (found,) = broadcast_object_list(answer)
    if isinstance(found, ValueError):
        raise found
    return found


def _look(output_dir: Path, resume_from_checkpoint: str | None, overwrite: bool) -> Path | None:
    if resume_from_checkpoint:
        return find_checkpoint(output_dir / "checkpoints", resume_from_checkpoint)
    if not overwrite and any(run_files(output_dir)):
        raise ValueError(
            f"`output_dir` is {output_dir}, which already holds a run; choose another, continue that run with"
            " --resume_from_checkpoint latest, or delete it with --overwrite_output_dir."
        )
    return None


def start_output_dir(output_dir: Path, fresh: bool) -> None:
    """Make the folder; for a fresh start remove what an earlier run left, and nothing else."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for path in run_files(output_dir) if fresh else []:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
