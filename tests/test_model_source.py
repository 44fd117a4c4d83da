"""What may be named as a model: one answer, or one sentence that says what to name instead."""

import json

import pytest

from dinov2_hf import DINOv2PreTrainingConfig
from dinov2_hf.model_source import PRETRAINING_TYPE, find_model, is_other_layout
from dinov2_hf.output_folders import write_marker


BOTH = ("pretraining_model", "model")


def config(folder, model_type="dinov2_hf"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


@pytest.fixture
def run(tmp_path):
    """The output folder of a finished run."""
    run = tmp_path / "run"
    config(run / "model")
    config(run / "pretraining_model", PRETRAINING_TYPE)
    (run / "checkpoints" / "step_0000004").mkdir(parents=True)
    write_marker(run, "run")
    return run


def test_the_type_is_that_of_the_configuration():
    assert DINOv2PreTrainingConfig.model_type == PRETRAINING_TYPE


def test_model_and_run_folders(run):
    assert find_model(run / "model") == run / "model"
    assert find_model(str(run)) == run / "model"
    assert find_model(run, BOTH) == run / "pretraining_model"
    assert find_model(run, BOTH[::-1]) == run / "model"
    assert find_model(run / "pretraining_model", BOTH) == run / "pretraining_model"
    assert find_model(run / "model", BOTH) == run / "model"


def test_a_converted_teacher(tmp_path):
    config(tmp_path)
    config(tmp_path / "pretraining_model", PRETRAINING_TYPE)
    assert find_model(tmp_path) == find_model(tmp_path, BOTH[::-1]) == tmp_path
    assert find_model(tmp_path, BOTH) == tmp_path / "pretraining_model"
    with pytest.raises(
        ValueError, match=f"to continue a training from; name {tmp_path}, which holds only the backbone"
    ):
        find_model(tmp_path / "pretraining_model")


def test_hub_ids_stay():
    assert find_model("facebook/dinov2-base") == "facebook/dinov2-base"
    assert find_model("gpt2") == "gpt2"
    assert find_model("ada/run/pretraining_model", BOTH) == "ada/run/pretraining_model"


def test_files_of_the_original(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    assert find_model(path) == path
    assert is_other_layout(path)
    with pytest.raises(ValueError, match=rf"x\.pth is a file of weights.* `dinov2-hf convert {path} FOLDER` and"):
        find_model(path, folder_only=True)


def test_a_checkpoint_of_a_run(run):
    checkpoint = run / "checkpoints" / "step_0000004"
    (checkpoint / "run_state.json").write_text("{}")
    (run / "checkpoints" / "step_0000003").mkdir()
    (run / "checkpoints" / "step_0000003" / "run_state.json").write_text("{}")
    assert find_model(checkpoint) == find_model(run / "checkpoints" / "latest") == checkpoint
    assert find_model(run / "checkpoints" / "latest" / "small") == checkpoint / "small"
    assert is_other_layout(checkpoint)
    assert is_other_layout(checkpoint / "small")
    assert not is_other_layout(find_model(run))
    with pytest.raises(ValueError, match="is a checkpoint, but .* is needed; make a model folder of it with"):
        find_model(checkpoint, folder_only=True)
    with pytest.raises(ValueError, match=f"holds checkpoints; name one of them, or {run}/checkpoints/latest"):
        find_model(run / "checkpoints")
    (run / "model" / "config.json").unlink()
    with pytest.raises(ValueError, match=f"no model yet; .*name {run}/checkpoints/latest for its present weights"):
        find_model(run)


def test_a_folder_of_timm(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_dinov2"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_model(tmp_path) == tmp_path / "model.safetensors"


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config(tmp_path / "model")
    assert find_model("~/model") == tmp_path / "model"


def other_file(run):
    (run / "model" / "model.safetensors").write_bytes(b"")
    return run / "model" / "model.safetensors"


def unfinished(run):
    (run / "model" / "config.json").unlink()
    return run


def students(run):
    (run / "model").rename(run / "students")
    for name in ("small", "base"):
        config(run / "students" / name / "model")
    return run


def web_project(run):
    (run / "config.json").write_text('{"port": 80}')
    return run


def broken(run):
    (run / "model" / "config.json").write_text("{")
    return run


def curation(run):
    folder = run / "curation"
    folder.mkdir()
    write_marker(folder, "curation")
    return folder


def empty(run):
    (run / "empty").mkdir()
    return run / "empty"


def only_weights(run):
    (empty(run) / "pytorch_model.bin").write_bytes(b"")
    return run / "empty"


OTHERS = {
    "pretraining_model": (lambda run: run / "pretraining_model", "student, teacher and heads.*; name {run}/model,"),
    "checkpoints": (lambda run: run / "checkpoints", "holds no checkpoint; name the model of that run, {run}/model"),
    "no checkpoint": (lambda run: run / "checkpoints" / "latest", "holds no checkpoint yet; a model folder"),
    "unfinished": (unfinished, "a run that has left no model yet; continue it"),
    "students": (students, "several students; name one of {run}/students/base/model, {run}/students/small/model"),
    "web project": (web_project, "is not a model folder: its config.json has no `model_type`; name"),
    "broken": (broken, "is not JSON"),
    "curation": (curation, "holds a curation, but a model folder, the output folder of a run or"),
    "empty": (empty, "has no config.json, so it is not a model folder; name"),
    "weights": (only_weights, "holds weights, but no config.json; name"),
    "file": (other_file, "is a file, .*; name its folder, {run}/model"),
    "not there": (lambda run: run / "nothing", "nothing does not exist, and a model folder"),
    "typed wrong": (lambda run: "./nothing", r"\./nothing does not exist"),
    "address": (lambda run: "s3://bucket/model", "is an address, but a model folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_anything_else_is_one_sentence(run, name):
    change, message = OTHERS[name]
    source = change(run)
    with pytest.raises(ValueError, match=message.format(run=run)) as raised:
        find_model(source)
    assert "\n" not in str(raised.value)
