"""Resuming by the script: only the same recipe goes on by itself, and nothing of a checkpoint is executed."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from dinov2_hf.training.checkpointing.checkpoint_manifest import write_manifest

from .conftest import forget_accelerate
from .test_output_folder import finished, refused  # noqa: F401  (fixtures)
from .test_pretrain import run


@pytest.fixture
def out(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step_0000004")
    return tmp_path / "out"


LATEST = ("--resume_from_checkpoint", "latest", "--max_steps", "4")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--learning_rate", "0.5"), "`learning_rate` was 0.001 and is 0.5, so the run would go on as another one"),
        (("--seed", "3", "--koleo_loss_weight", "1"), "`koleo_loss_weight` was 0.1 and is 1.0, `seed` was 0 and is 3"),
        (("--max_steps", "6"), "`max_steps` was 4 and is 6"),
        (("--hidden_size", "64"), "`hidden_size` was 32 and is 64, which cannot change within a run"),
        (("--hidden_size", "64", "--allow_recipe_change"), "`hidden_size` was 32 and is 64, which cannot change"),
        (("--num_prototypes", "64", "--allow_recipe_change"), "`num_prototypes` was 32 and is 64, which cannot"),
        (("--centering", "sinkhorn_knopp", "--allow_recipe_change"), "could not be put into this run"),
    ],
)
def test_another_recipe_is_refused_and_leaves_the_run_as_it_was(pretrain, recipe, images, out, flags, sentence):
    refused(pretrain, recipe, images, out, *LATEST, *flags, sentence=sentence)


def test_a_change_that_was_allowed_is_in_the_recipe(pretrain, recipe, images, out):
    run(pretrain, recipe, images, out, *LATEST, "--learning_rate", "0.5", "--allow_recipe_change")
    values = yaml.safe_load((out / "recipe.yaml").read_text())
    assert values["learning_rate"] == 0.5
    assert not {"allow_recipe_change", "overwrite_output_dir", "resume_from_checkpoint"} & values.keys()
    state = json.loads((out / "checkpoints" / "step_0000004" / "run_state.json").read_text())
    assert state["recipe"]["learning_rate"] == 0.5


def test_other_training_images_are_refused(pretrain, recipe, images, out, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    run(pretrain, recipe, tmp_path / "moved", out, *LATEST)
    next((tmp_path / "moved").rglob("*.png")).unlink()
    forget_accelerate()
    refused(pretrain, recipe, tmp_path / "moved", out, *LATEST, sentence="`train_data images` was 24 and is 23")


def test_accuracy_before_training_is_none_where_it_was_not_measured(pretrain, recipe, images, out, capsys):
    flags = ("--eval_data", str(images), "--eval_split", "train", "--allow_recipe_change")
    run(pretrain, recipe, images, out, *LATEST, *flags)
    knn = json.loads((out / "metrics.json").read_text())["knn"]
    assert knn["before"] is None
    assert knn["after"]
    assert "before training   not measured" in capsys.readouterr().out
    assert "| not measured |" in (out / "model" / "README.md").read_text()


class Planted:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_a_planted_pickle_does_not_run(pretrain, recipe, images, out, tmp_path, name):
    checkpoint = out / "checkpoints" / "step_0000002"
    torch.save(Planted(tmp_path / "it ran"), checkpoint / name)
    write_manifest(checkpoint)
    sentence = f"step_0000002 is not read, because its {name} asks for .*Reading it could run code"
    refused(pretrain, recipe, images, out, *LATEST, sentence=sentence)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint / name)
    assert not (tmp_path / "it ran").exists()
