"""
The output folder of a run. It is free, or belongs to the run that continues. Only one run can use it at a time.

The folder of a run has a marker, and its files are recognised by name. Other files in it are not touched.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator

from ..atomic_files import remove_leftovers
from ..data.reading.mixed_images import paths_of
from ..output_folders import (
    check_kind,
    read_marker,
    refuse_links,
    refuse_overlap,
    refuse_urls,
    sole_writer,
    write_marker,
)
from ..training.checkpointing.checkpoint_folders import CHECKPOINT_NAME, CHECKPOINTS, checkpoint_name, list_checkpoints
from ..training.checkpointing.checkpoint_manifest import remove_if_empty
from ..training.checkpointing.checkpoints import find_checkpoint, refuse_foreign, remove_checkpoint
from ..training.nonfinite_steps.nonfinite_batches import FOLDER as NONFINITE_STEPS
from ..training.nonfinite_steps.nonfinite_batches import KIND as NONFINITE_STEP
from ..training.processes.distributed import on_main_for_all
from .pretraining_arguments import PreTrainingArguments
from .recipe.resumed_recipe import RECIPE_FILE


TRACKERS, STUDENTS_FOLDER = "trackers", "students"
BEST, MODELS_OF_STEPS, PICTURES = "model_best", "models", "pictures"
OVER_STEPS = "patch_pca_over_steps.png"
PAGE = "report.html"
MODELS = ("model", "pretraining_model", BEST)
# Folders in which steps have their own folders, and the kind of these.
OF_STEPS = {MODELS_OF_STEPS: "model", NONFINITE_STEPS: NONFINITE_STEP, PICTURES: "pictures"}
FOLDERS = (CHECKPOINTS, TRACKERS, STUDENTS_FOLDER, *OF_STEPS, *MODELS)
FILES = (
    RECIPE_FILE, "metrics.jsonl", "metrics.json", "training_curves.png", "patch_pca.png", "skipped_images*.jsonl",
    "nonfinite_steps.jsonl", OVER_STEPS, PAGE,
)  # fmt: skip
TRACKER_FILES = ("events.out.tfevents.*", "hparams.yml")  # of TensorBoard; other trackers have places of their own


@contextmanager
def claimed_folder(accelerator: Accelerator, args: PreTrainingArguments) -> Iterator[Path | None]:
    """
    Hold the output folder for this run while the block runs. The main process checks it and holds the lock, and all
    processes get its answer. Only the lock is written, and only unfinished files of killed runs are deleted. A folder
    that stays empty is removed afterwards.

    Yields:
        The checkpoint to resume from, or `None` for a fresh start.

    Raises:
        ValueError: on all processes, if there is no such checkpoint, or the folder contains another run or files with
            names of a run that no run wrote, is or overlaps a source, is not a folder of this machine, or another run
            is writing to it.
    """
    with ExitStack() as held:
        yield on_main_for_all(accelerator, lambda: _claim(held, args))


def start_output_dir(output_dir: Path, fresh: bool, step: int) -> None:
    """
    Mark the folder as a run's. For a fresh start, remove the files of an earlier run. Otherwise remove only the files
    of steps after `step`, which are done again.
    """
    write_marker(output_dir, "run")
    if fresh:
        _remove_run(output_dir)
        return
    for folder in _folders(output_dir):
        for left, kind in _left_by_steps(folder).items():
            if left.name > checkpoint_name(step):
                _remove(left, kind)


def _claim(held: ExitStack, args: PreTrainingArguments) -> Path | None:
    output_dir = Path(args.output_dir)
    refuse_urls(args.output_dir)
    refuse_overlap(output_dir, _sources(args))
    for folder in _folders(output_dir):
        refuse_links(folder, [*FOLDERS, *(path.name for path in _files(folder))])
    refuse_links(output_dir / STUDENTS_FOLDER, [folder.name for folder in _folders(output_dir)[1:]])
    held.enter_context(_without_traces(output_dir))
    held.enter_context(sole_writer(output_dir))
    for folder in _folders(output_dir):
        remove_leftovers(folder, "|".join(MODELS))
        for name in OF_STEPS:
            if (folder / name).is_dir():
                remove_leftovers(folder / name, CHECKPOINT_NAME)
    if (output_dir / CHECKPOINTS).is_dir():
        remove_leftovers(output_dir / CHECKPOINTS, CHECKPOINT_NAME)
    return _look(output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)


def _look(output_dir: Path, wanted: str | None, overwrite: bool) -> Path | None:
    if wanted and overwrite:
        raise ValueError(
            "--overwrite_output_dir would delete what --resume_from_checkpoint continues; leave out one of them."
        )
    if wanted:
        checkpoint = find_checkpoint(output_dir / CHECKPOINTS, wanted)
        if checkpoint.resolve().parent == (output_dir / CHECKPOINTS).resolve():
            _refuse_foreign_files(output_dir)
        elif _left_by_run(output_dir):
            raise ValueError(
                f"--output_dir is {output_dir}, which holds {_names(output_dir)}, but --resume_from_checkpoint is"
                f" {checkpoint}, of another run; choose a new folder, or continue the run that is there with"
                " --resume_from_checkpoint latest."
            )
        return checkpoint
    if not _left_by_run(output_dir):
        return None
    if (read_marker(output_dir) or {}).get("kind") != "run":
        raise ValueError(
            f"--output_dir is {output_dir}, which holds {_names(output_dir)}, but no run of dinov2_hf wrote that, so"
            " it is not replaced; choose another folder, or move it away."
        )
    if not overwrite:
        raise ValueError(
            f"--output_dir is {output_dir}, which already holds a run; choose another, continue that run with"
            " --resume_from_checkpoint latest, or delete it with --overwrite_output_dir."
        )
    _refuse_foreign_files(output_dir)
    return None


def _sources(args: PreTrainingArguments) -> list[str]:
    """The inputs of the run; for a distillation also its teacher, and the initial weights of its students."""
    students = getattr(args, "students", None) or []
    named = [
        *paths_of(args.train_data), args.eval_data, args.eval_bank_data, args.dense_eval_data,
        args.dense_eval_bank_data, args.init_from, args.gram_teacher, getattr(args, "teacher", None),
    ]  # fmt: skip
    return [source for source in (*named, *(entry.get("init_from") for entry in students)) if source]


def _folders(output_dir: Path) -> list[Path]:
    """The folder of the run, and those of its students, which have the same structure."""
    students = output_dir / STUDENTS_FOLDER
    return [output_dir, *(sorted(path for path in students.iterdir() if path.is_dir()) if students.is_dir() else [])]


def _files(folder: Path) -> list[Path]:
    return [path for pattern in FILES for path in folder.glob(pattern)]


def _written_whole(folder: Path) -> dict[Path, str]:
    """Folders that a run wrote as a whole, at its end and before, with their kinds."""
    return {folder / name: "model" for name in MODELS if (folder / name).exists()} | _left_by_steps(folder)


def _left_by_steps(folder: Path) -> dict[Path, str]:
    return {
        path: kind
        for name, kind in OF_STEPS.items()
        if (folder / name).is_dir()
        for path in (folder / name).iterdir()
        if re.fullmatch(CHECKPOINT_NAME, path.name)
    }


def _remove(folder: Path, kind: str) -> None:
    check_kind(folder, kind)
    shutil.rmtree(folder)


def _left_by_run(output_dir: Path) -> list[Path]:
    """Existing files and folders with names of a run."""
    folders = [output_dir / name for name in FOLDERS]
    return [*(folder for folder in folders if folder.exists()), *_files(output_dir)]


def _names(output_dir: Path) -> str:
    return ", ".join(path.name for path in _left_by_run(output_dir))


def _refuse_foreign_files(output_dir: Path) -> None:
    """Check that all files to replace or delete belong to a run."""
    for folder in _folders(output_dir):
        for left, kind in _written_whole(folder).items():
            check_kind(left, kind)
    for checkpoint in list_checkpoints(output_dir / CHECKPOINTS):
        refuse_foreign(checkpoint)


def _remove_run(output_dir: Path) -> None:
    checkpoints, trackers = output_dir / CHECKPOINTS, output_dir / TRACKERS
    for checkpoint in list_checkpoints(checkpoints):
        remove_checkpoint(checkpoint)
    files = [path for pattern in TRACKER_FILES for path in trackers.rglob(pattern)]
    for folder in _folders(output_dir):
        for left, kind in _written_whole(folder).items():
            _remove(left, kind)
        for name in OF_STEPS:
            remove_if_empty(folder / name)
        files += _files(folder)
    for path in files:
        path.unlink()
    below = [path for path in trackers.rglob("*") if path.is_dir()]
    students = output_dir / STUDENTS_FOLDER
    for folder in (*sorted(below, reverse=True), *_folders(output_dir)[1:], checkpoints, trackers, students):
        remove_if_empty(folder)


@contextmanager
def _without_traces(folder: Path) -> Iterator[None]:
    """Remove the folders that were made for `folder` while the block ran, if they are empty at its end."""
    place = folder.resolve()
    made = [path for path in (place, *place.parents) if not os.path.lexists(path)]
    try:
        yield
    finally:
        for path in made:
            remove_if_empty(path)
