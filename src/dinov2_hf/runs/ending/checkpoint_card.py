"""The README of a model folder that was made from a checkpoint: the card of the run at this step."""

from pathlib import Path

from huggingface_hub import ModelCard
from transformers import PreTrainedConfig

from ...declarations import declared
from ...options import options_of
from ...training.checkpointing.checkpoint_folders import read_state
from ...training.students import recipe_of_student
from ..state import measured_by
from ..while_training.evaluation_words import WORDS
from .model_card import model_card


def checkpoint_card(path: Path, student: str, config: PreTrainedConfig) -> ModelCard:
    """
    Args:
        path: the checkpoint.
        student: with several students, the name of the one in the folder; else empty.
        config: configuration of its backbone.
    """
    state = read_state(path)
    recipe = recipe_of_student(state["recipe"], student)
    kinds = "runs.distillation_plan:KINDS" if "teacher" in recipe else "runs.pretraining_plan:KINDS"
    options = {name: option for kind in declared(kinds) for name, option in options_of(kind).items()}
    # It also has sizes of the data. A recipe of an earlier version lacks later options.
    known = {name: value for name, value in recipe.items() if name in options}
    measured = {name: measured_by(state, name, student) for name in WORDS if f"{name}_after" in state}
    return model_card(
        config,
        student or path.resolve().parents[1].name,
        steps=state["step"],
        recipe={name: option.default for name, option in options.items()} | known,
        measured=measured,
    )
