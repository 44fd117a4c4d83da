"""A run that is resumed without --config goes on with the recipe that it was made with."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dinov2_hf.cli.main import main as command
from dinov2_hf.training.checkpointing.checkpoint_manifest import write_manifest

from .conftest import forget_accelerate, load_example, run_until_saved
from .test_output_folder import finished, tree  # noqa: F401  (a fixture)
from .test_pretrain import assert_same_run, run


STARTED = ("--learning_rate", "5e-4", "--seed", "3", "--koleo_loss_weight", "0.2", "--eval_steps", "2")


def values(folder: Path) -> dict:
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def resume(output_dir: Path, *flags: str, main=command) -> None:
    forget_accelerate()
    words = ["--output_dir", str(output_dir), "--resume_from_checkpoint", "latest", *flags]
    main(["pretrain", *words] if main is command else words)


def refused(output_dir: Path, *flags: str, sentence: str) -> None:
    """In one sentence, with all files as before."""
    before = tree(output_dir.parent)
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{sentence}") as stop:
        resume(output_dir, *flags)
    assert "\n" not in str(stop.value)
    assert tree(output_dir.parent) == before


@pytest.fixture
def out(finished, tmp_path):  # noqa: F811
    """A run of four steps that has lost the second half of them."""
    shutil.copytree(finished, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step_0000004")
    return tmp_path / "out"


def test_a_run_is_resumed_by_its_folder_alone(pretrain, recipe, images, tmp_path, caplog):
    run(pretrain, recipe, images, tmp_path / "straight", *STARTED)
    run_until_saved(4, lambda: run(pretrain, recipe, images, tmp_path / "resumed", *STARTED))
    with caplog.at_level("INFO"):
        resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    assert values(tmp_path / "straight") == values(tmp_path / "resumed")
    assert f"continued from      {tmp_path / 'resumed' / 'checkpoints' / 'step_0000004'}" in caplog.text
    assert "weights from" not in caplog.text


def test_flags_say_other_than_the_run(out):
    resume(out, "--logging_steps", "2", "--learning_rate", "0.5", "--allow_recipe_change")
    assert (values(out)["learning_rate"], values(out)["logging_steps"], values(out)["hidden_size"]) == (0.5, 2, 32)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 4]


def test_a_flag_may_leave_values_of_the_run_without_effect(pretrain, recipe, images, tmp_path):
    streamed = ("--streaming", "--shuffle_buffer_size", "4")
    run(pretrain, recipe, images, tmp_path / "out", *streamed, "--stop_after_steps", "2")
    resume(tmp_path / "out", "--streaming", "false", "--stop_after_steps", "3", "--allow_recipe_change")
    assert (values(tmp_path / "out")["streaming"], values(tmp_path / "out")["shuffle_buffer_size"]) == (False, 4)


def test_what_changed_is_one_sentence(out, images):
    others = "`koleo_loss_weight` was 0.1 and is 0.0, `max_steps` was 4 and is 3, `seed` was 0 and is 3"
    flags = ("--seed", "3", "--max_steps", "3", "--koleo_loss_weight", "0", "--logging_steps", "2")
    refused(out, *flags, sentence=f"{others}, so .* leave it as it was .--stop_after_steps ends it earlier., or add")
    both = f"`hidden_size` was 32 and is 64, which cannot change within a run, and {others}, which needs --allow_rec"
    refused(out, *flags, "--hidden_size", "64", sentence=both)
    flags += ("--hidden_size", "64", "--allow_recipe_change")
    refused(out, *flags, sentence="`hidden_size` was 32 and is 64, which cannot change within a run; leave it")
    less = images.parent / "less"
    shutil.copytree(images, less, dirs_exist_ok=True)
    next(less.rglob("*.png")).unlink()
    refused(out, "--train_data", str(less), sentence="`train_data images` was 24 and is 23")


def test_an_edited_recipe_is_a_changed_one(out):
    (out / "recipe.yaml").write_text(yaml.safe_dump(values(out) | {"learning_rate": 0.5}))
    refused(out, sentence="`learning_rate` was 0.001 and is 0.5, so the run would go on as another one")
    (out / "recipe.yaml").write_text(yaml.safe_dump(values(out) | {"learning_rat": 0.5}))
    refused(out, sentence="recipe.yaml has the unknown key `learning_rat`. Did you mean `learning_rate`")


def test_a_checkpoint_tells_the_recipe_where_the_run_does_not(out, tmp_path):
    """It was copied elsewhere, and is of an earlier version, with an option that is gone and without a later one."""
    shutil.move(out / "checkpoints" / "step_0000002", tmp_path / "step_0000002")
    state = json.loads((tmp_path / "step_0000002" / "run_state.json").read_text())
    state["recipe"]["gone"] = True
    del state["recipe"]["crop_packing"]
    (tmp_path / "step_0000002" / "run_state.json").write_text(json.dumps(state))
    (tmp_path / "step_0000002" / "manifest.json").unlink()
    write_manifest(tmp_path / "step_0000002")
    forget_accelerate()
    words = ["--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", str(tmp_path / "step_0000002")]
    command(["pretrain", *words])
    assert values(tmp_path / "new") == values(out)


def test_a_run_that_was_stopped_goes_on(pretrain, recipe, images, tmp_path, caplog):
    """To its last step: where it was stopped is of one start. Where no step is left, the log says so."""
    out = tmp_path / "out"
    caplog.set_level("INFO")
    run(pretrain, recipe, images, out, "--stop_after_steps", "2")
    assert "0 of 6, 1.0 passes over the data; ends after 2" in caplog.text
    resume(out, "--stop_after_steps", "4")
    assert json.loads((out / "metrics.json").read_text())["steps"] == 4
    resume(out, "--stop_after_steps", "4")
    assert "4 of 6, 1.0 passes over the data; none is left by `stop_after_steps`" in caplog.text
    refused(out, "--stop_after_steps", "3", sentence="`stop_after_steps` is 3, but the checkpoint is of step 4; give")
    refused(out, "--max_steps", "3", "--allow_recipe_change", sentence="`max_steps` is 3, but the checkpoint is of")
    refused(out, "--max_steps", "8", sentence="`max_steps` was 6 and is 8, so the run would go on as another one")
    resume(out, "--max_steps", "8", "--allow_recipe_change")
    assert json.loads((out / "metrics.json").read_text())["steps"] == 8
    assert values(out)["max_steps"] == 8


def test_nothing_to_resume_is_said_before_all_else(tmp_path):
    refused(tmp_path / "out", sentence='is "latest", but .*out/checkpoints holds no complete checkpoint; leave it out')


def test_a_distillation_is_resumed_by_its_folder_alone(pretrain, recipe, images, finished, tmp_path):  # noqa: F811
    distill = load_example("distill").main
    own = {name: value for name, value in yaml.safe_load(Path(recipe).read_text()).items() if "protot" not in name}
    students = [{"name": "half", "hidden_size": 16, "num_attention_heads": 1}, {"name": "wide", "learning_rate": 5e-4}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own | {"students": students}))
    words = ["--config", str(tmp_path / "own.yaml"), "--teacher", str(finished), "--train_data", str(images)]
    for name in ("straight", "resumed"):
        forget_accelerate()
        start = lambda: distill([*words, "--output_dir", str(tmp_path / name)])  # noqa: E731, B023
        start() if name == "straight" else run_until_saved(4, start)
    with pytest.raises(SystemExit, match="recipe.yaml is of a distillation; continue it with `dinov2-hf distill`"):
        resume(tmp_path / "resumed")
    resume(tmp_path / "resumed", main=distill)
    for name in ("half", "wide"):
        assert_same_run(tmp_path / "straight" / "students" / name, tmp_path / "resumed" / "students" / name)
    with pytest.raises(SystemExit, match="recipe.yaml is of a pretraining; continue it with `dinov2-hf pretrain`"):
        resume(finished, main=distill)
