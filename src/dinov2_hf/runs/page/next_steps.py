"""Suggestions for the next commands after a run."""

import shlex
from dataclasses import dataclass

from .run_facts import RunFacts


@dataclass(frozen=True)
class NextStep:
    """The purpose of a command, and the command."""

    why: str
    command: str


def next_steps(facts: RunFacts) -> list[NextStep]:
    """Commands for the folder of the run; the reader must replace words in capitals."""
    run = shlex.quote(facts.folder.resolve().name)
    model = f"{run}/students/{facts.students[0].name}/model" if facts.students[0].name else f"{run}/model"
    steps = []
    if not facts.is_finished:
        if facts.checkpoints:
            command = "distill" if facts.is_distillation else "pretrain"
            steps.append(
                NextStep(
                    f"Go on to step {facts.recipe['max_steps']:,}, from step {facts.checkpoints[-1]:,}.",
                    f"dinov2-hf {command} --output_dir {run} --resume_from_checkpoint latest",
                )
            )
        if not facts.has_models:
            if not facts.checkpoints:
                return steps
            model = f"{run}/checkpoints/latest"
            if facts.students[0].name:
                model += f"/{facts.students[0].name}"
    measured = any(student.measured for student in facts.students)
    evaluate = f"dinov2-hf evaluate knn,linear {model} --train_data TRAIN --eval_data TEST --output_dir {run}/"
    steps += [
        NextStep(
            f"Measure it{' by more protocols' if measured else ''}, and the pixels beside it.",
            f"{evaluate}evaluation\n{evaluate}evaluation_pixels --baseline pixels",
        ),
        NextStep(
            "Look at what it sees, in pictures of yours.",
            f"dinov2-hf visualize {model} --kind pca --images *.jpg --output pca.png",
        ),
        NextStep(
            "Features of all your images, for a search or a classifier.",
            f"dinov2-hf features {model} --data IMAGES --output features.parquet",
        ),
    ]
    if facts.is_finished:
        license = "" if facts.recipe.get("license") else " The recipe names no license, which a card should have."
        if not facts.is_distillation:
            teach = f"--teacher {run} --train_data IMAGES --output_dir small"
            steps.append(
                NextStep("A small model that learns from it.", f"dinov2-hf distill --config vits14_distilled {teach}")
            )
        steps.append(NextStep(f"Share it.{license}", f"dinov2-hf push {model} --repo_id OWNER/NAME"))
    return steps
