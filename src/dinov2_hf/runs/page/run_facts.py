"""Facts about a run from the files of its output folder, at any time, without loading a network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ...declarations import declared
from ...options import Option, options_of
from ...output_folders import read_marker
from ...recipe_files import read_recipe
from ...training.checkpointing.checkpoint_folders import CHECKPOINTS, list_checkpoints, read_state
from ...training.monitoring.collapse import CollapseMonitor
from ...training.monitoring.monitor import read_metrics
from ...training.students import recipe_of_student
from ..recipe.resumed_recipe import RECIPE_FILE
from ..run_folder import STUDENTS_FOLDER
from ..state import measured_by
from ..while_training.best_model import describe_best
from ..while_training.evaluation_words import WORDS


@dataclass(frozen=True)
class Measured:
    """
    The results of one evaluation of the run.

    Args:
        evaluation: its name in `WORDS`.
        step: step of the last evaluation.
        after, before: its metrics at that step, and those of the initial network, if known.
        pixels: metrics of raw pixels, if they were measured.
    """

    evaluation: str
    step: int
    after: dict[str, float]
    before: dict[str, float] | None
    pixels: dict[str, float] | None = None


@dataclass(frozen=True)
class StudentFacts:
    """
    Facts about one network that the run trains.

    Args:
        name: empty for a single student.
        folder: folder of the run, or the student's folder below it.
        recipe: the recipe that would train it alone.
        records: all records of `metrics.jsonl`.
        measured: results of the evaluations of the run.
        warnings: step and sentence of each warning of the log.
        num_parameters: parameters of the exported model; `None` before there is one.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    records: list[dict]
    measured: list[Measured]
    warnings: list[tuple[int, str]]
    num_parameters: int | None


@dataclass(frozen=True)
class RunFacts:
    """
    Args:
        folder: the output folder.
        recipe: the recipe that the run wrote.
        options: options of a recipe of this kind, by name.
        step: the last known step.
        students: one student, or several of a distillation.
        checkpoints: steps of the existing checkpoints.
        best: the best step, in words; empty if none is kept.
        num_skipped: images that could not be decoded.
        num_nonfinite: steps that were left out, because their loss or gradients were not finite.
    """

    folder: Path
    recipe: dict[str, Any]
    options: dict[str, Option]
    step: int
    students: list[StudentFacts]
    checkpoints: list[int]
    best: str
    num_skipped: int
    num_nonfinite: int

    @property
    def is_distillation(self) -> bool:
        return "teacher" in self.recipe

    @property
    def has_models(self) -> bool:
        """Whether the run finished, and exported a model of every student."""
        return all(student.num_parameters is not None for student in self.students)

    @property
    def is_finished(self) -> bool:
        return self.has_models and self.step >= self.recipe["max_steps"]


def read_run(folder: Path) -> RunFacts:
    """
    Raises:
        ValueError: the folder is not the output folder of a run, or its files were changed.
    """
    path = folder / RECIPE_FILE
    marker = read_marker(folder)
    if not path.is_file() or (marker is not None and marker["kind"] != "run"):
        raise ValueError(f"{folder} is not the output folder of a run, which holds a {RECIPE_FILE}; name one.")
    recipe = read_recipe(path)
    kinds = "runs.distillation_plan:KINDS" if "teacher" in recipe else "runs.pretraining_plan:KINDS"
    options = {name: option for kind in declared(kinds) for name, option in options_of(kind).items()}
    missing = [name for name in ("train_data", "max_steps") if recipe.get(name) is None]
    if missing:
        raise ValueError(f"{path} has no `{missing[0]}`, so it is not the recipe of a run.")
    # A recipe of an earlier version does not have later options.
    in_force = {name: option.default for name, option in options.items()} | recipe
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    state = read_state(checkpoints[-1]) if checkpoints else {}
    names = [entry["name"] for entry in recipe.get("students") or ()] or [""]
    students = [_read_student(folder, name, in_force, state) for name in names]
    seen = [record["step"] for student in students for record in student.records]
    summary = _read_json(folder / "metrics.json")
    return RunFacts(
        folder=folder,
        recipe=recipe,
        options=options,
        step=max([*seen, state.get("step", 0)]),
        students=students,
        checkpoints=[int(path.name.removeprefix("step_")) for path in checkpoints],
        best=describe_best(state.get("best", summary.get("best"))),
        num_skipped=_num_lines(folder, "skipped_images*.jsonl"),
        num_nonfinite=_num_lines(folder, "nonfinite_steps.jsonl"),
    )


def _read_student(folder: Path, name: str, recipe: dict[str, Any], state: Mapping[str, Any]) -> StudentFacts:
    own = folder / STUDENTS_FOLDER / name if name else folder
    path = own / "metrics.jsonl"
    records = [record for record in read_metrics(path) if "step" in record] if path.is_file() else []
    recipe = recipe_of_student(recipe, name)
    return StudentFacts(
        name=name,
        folder=own,
        recipe=recipe,
        records=records,
        measured=_measured(name, records, state, _read_json(own / "metrics.json")),
        warnings=_warnings(records, recipe, state),
        num_parameters=_num_parameters(own / "model" / "model.safetensors"),
    )


def _measured(name: str, records: list[dict], state: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Measured]:
    found = []
    for evaluation in WORDS:
        of_it = [record for record in records if any(key.startswith(f"{evaluation}_") for key in record)]
        of_it = [record for record in of_it if all(value is not None for value in record.values())]
        if not of_it or not of_it[-1]["step"]:
            continue
        after = {key: value for key, value in of_it[-1].items() if key.startswith(f"{evaluation}_")}
        # A run forgets numbers of its start that cannot be compared, because the images have changed.
        before = next((dict(record) for record in of_it if record["step"] == 0), None)
        pixels = None
        if state or evaluation in summary:
            there = measured_by(state, evaluation, name) if state else summary[evaluation]
            before, pixels = there["before"], there.get("pixels")
        found.append(Measured(evaluation, of_it[-1]["step"], after, before, pixels))
    return found


def _warnings(records: list[dict], recipe: Mapping[str, Any], state: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The warnings of the log: the same rules over the same numbers."""
    monitor = CollapseMonitor(
        {},
        num_prototypes=recipe["num_prototypes"],
        warmup_steps=recipe["warmup_steps"],
        image_level=recipe["dino_loss_weight"] > 0,
        patch_level=recipe["ibot_loss_weight"] > 0,
        num_eval_images=state.get("recipe", {}).get("eval_data images") or 0,
    )
    found = []
    for record in records:
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        found += [(record["step"], warning.sentence) for warning in monitor.observe(record["step"], numbers)]
    return found


def _num_parameters(path: Path) -> int | None:
    """The number of parameters of a model, from the header of its file; `None` if there is none or several files."""
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as file:
        count = 0
        for name in file.keys():
            size = 1
            for length in file.get_slice(name).get_shape():
                size *= length
            count += size
    return count


def _num_lines(folder: Path, pattern: str) -> int:
    return sum(1 for path in folder.glob(pattern) for line in path.read_bytes().splitlines() if line.strip())


def _read_json(path: Path) -> dict[str, Any]:
    """The content of a file that a run writes at its end; empty before."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
