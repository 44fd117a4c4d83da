"""The page of a run: one HTML file that opens from the disk, without a network or other files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.reading.mixed_images import paths_of
from ...pictures.html_pages import embedded, templates
from ...pictures.interactive_curves import SCRIPT, interactive_curves
from ...public_names import public_name
from ..ending.model_card import public_recipe
from ..run_folder import OVER_STEPS, PICTURES
from ..while_training.evaluation_words import WORDS, bank_of
from ..while_training.feature_pictures import ATTENTION, PCA
from .evaluations_there import evaluations_there
from .next_steps import next_steps
from .recipe_table import recipe_rows
from .run_facts import Measured, RunFacts, StudentFacts


MOST_STEPS = 12  # steps whose pictures are shown
KINDS_OF_PICTURES = {PCA: "Patch features, as colours", ATTENTION: "Attention of CLS, head by head"}


@dataclass(frozen=True)
class _Table:
    described: str
    step: int
    start: str  # title of the second column
    has_pixels: bool
    rows: list[tuple[str, float, float | None, float | None]]  # label, now, at the start, of raw pixels


@dataclass(frozen=True)
class _Student:
    name: str
    network: str
    measured: list[_Table]
    warnings: list[tuple[int, str]]
    curves: list[dict[str, Any]]
    thinned: int  # every how many steps of the longest curve are shown
    over_steps: str | None
    pictures: dict[str, dict[int, str]] = field(default_factory=dict)


def render_page(facts: RunFacts) -> str:
    """The page of a run as HTML. Paths are cut to their last part, and secrets are removed."""
    changed, same = recipe_rows(facts.recipe, facts.options)
    return (
        templates(__package__, autoescape=True)
        .get_template("run_page.html.jinja")
        .render(
            name=facts.folder.resolve().name,
            facts=facts,
            data=", ".join(public_name(path) for path in paths_of(facts.recipe["train_data"])),
            teacher=public_name(facts.recipe["teacher"]) if facts.is_distillation else None,
            students=[_student(student) for student in facts.students],
            evaluations=evaluations_there(facts.folder),
            changed=changed,
            same=same,
            next_steps=next_steps(facts),
            script=SCRIPT.read_text(encoding="utf-8"),
        )
    )


def _student(student: StudentFacts) -> _Student:
    recipe = student.recipe
    pixels = next((found.pixels for found in student.measured if found.evaluation == "knn"), None)
    curves = interactive_curves(student.records, num_prototypes=recipe["num_prototypes"], pixels=pixels)
    over_steps = student.folder / OVER_STEPS
    return _Student(
        name=student.name,
        network=_network(recipe, student.num_parameters),
        measured=[_table(found, public_recipe(recipe)) for found in student.measured],
        warnings=student.warnings,
        curves=curves,
        thinned=max((curve["every"] for panel in curves for curve in panel["curves"]), default=1),
        over_steps=embedded(over_steps) if over_steps.is_file() else None,
        pictures={
            title: found
            for name, title in KINDS_OF_PICTURES.items()
            if (found := _of_steps(student.folder / PICTURES, name))
        },
    )


def _network(recipe: Mapping[str, Any], num_parameters: int | None) -> str:
    size = f"{num_parameters / 1e6:.1f} million parameters, " if num_parameters is not None else ""
    registers = f", {recipe['num_register_tokens']} registers" if recipe["num_register_tokens"] else ""
    return (
        f"{size}{recipe['num_hidden_layers']} blocks of {recipe['hidden_size']} channels,"
        f" {recipe['num_attention_heads']} heads, patches of {recipe['patch_size']} pixels,"
        f" crops of {recipe['image_size']}{registers}"
    )


def _table(found: Measured, recipe: Mapping[str, Any]) -> _Table:
    words = WORDS[found.evaluation]
    return _Table(
        described=words.described.format(data=recipe[words.data], bank=bank_of(words, recipe)).replace("`", ""),
        step=found.step,
        start="before this run" if recipe.get("init_from") else "untrained",
        has_pixels=found.pixels is not None,
        rows=[
            (f"{words.title} {label}", value, (found.before or {}).get(name), (found.pixels or {}).get(name))
            for name, (label, value) in words.shown(found.after).items()
        ],
    )


def _of_steps(folder: Path, name: str) -> dict[int, str]:
    """Pictures of that name at up to `MOST_STEPS` steps, from the first to the last."""
    found = {int(path.parent.name.removeprefix("step_")): path for path in folder.glob(f"step_*/{name}")}
    steps = sorted(found)
    chosen = {steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS))}
    return {step: embedded(found[step]) for step in sorted(chosen)}
