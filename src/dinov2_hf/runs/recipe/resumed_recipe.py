"""The recipe of a resumed run, if the command line names none: its own."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...options import Option, options_of, read_mapping
from ...recipe_files import read_recipe
from ...training.checkpointing.checkpoint_folders import CHECKPOINTS, read_state
from ...training.checkpointing.checkpoints import checkpoints_meant
from ..pretraining_arguments import PreTrainingArguments


RECIPE_FILE = "recipe.yaml"  # of the output folder of a run


def recipe_of_run(options: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    The recipe of the run whose checkpoint `--resume_from_checkpoint` names: the `recipe.yaml` of its folder, or the
    recipe in the checkpoint if it is not in such a folder. Options that no longer exist are left out.

    Args:
        options: options of a pretraining or a distillation.
        given: values of the flags.

    Returns:
        Names and values; empty if nothing is resumed.

    Raises:
        ValueError: there is no such checkpoint, the recipe belongs to another kind of run, or it was damaged.
    """
    wanted = given.get("resume_from_checkpoint")
    if wanted is None:
        return {}
    folder = Path(given.get("output_dir", options["output_dir"].default)) / CHECKPOINTS
    checkpoint = checkpoints_meant(folder, wanted)[0].absolute()
    recipe = of_checkpoint = read_state(checkpoint).get("recipe", {})
    source, path = checkpoint, checkpoint.parent.with_name(RECIPE_FILE)
    if checkpoint.parent.name == CHECKPOINTS and path.is_file():
        recipe, source = read_recipe(path), path
    if recipe and ("teacher" in recipe) != ("teacher" in options):
        kind, command = ("distillation", "distill") if "teacher" in recipe else ("pretraining", "pretrain")
        raise ValueError(f"{source} is of a {kind}; continue it with `dinov2-hf {command}`.")
    # An unknown name that the checkpoint also has is from an earlier version. Any other is an error of an edit.
    known = {name: value for name, value in recipe.items() if name in options or name not in of_checkpoint}
    return read_mapping(options, known, str(source))


def network_of_checkpoint(args: PreTrainingArguments, kinds: Iterable[type]) -> dict[str, Any]:
    """
    The network and objective of the checkpoint that a run is resumed from.

    Args:
        kinds: configurations whose fields are returned.

    Returns:
        Names and values; empty if nothing is resumed, or if several students have their own networks.

    Raises:
        ValueError: there is no such checkpoint.
    """
    if args.resume_from_checkpoint is None:
        return {}
    checkpoint = checkpoints_meant(Path(args.output_dir) / CHECKPOINTS, args.resume_from_checkpoint)[0]
    recipe = read_state(checkpoint).get("recipe", {})
    if recipe.get("students"):
        return {}
    return {name: recipe[name] for kind in kinds for name in options_of(kind) if name in recipe}
