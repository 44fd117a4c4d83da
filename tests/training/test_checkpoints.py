"""Checkpoints are whole or not there."""

import json

import pytest
import torch
from accelerate import Accelerator

from dinov2_hf.training.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_state,
    replace_folder,
    save_checkpoint,
)


@pytest.fixture
def prepared():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer)


def step(accelerator, model, optimizer):
    accelerator.backward(model(torch.randn(4, 3)).square().sum())
    optimizer.step()
    optimizer.zero_grad()


def test_save_and_load_bring_everything_back(tmp_path, prepared):
    accelerator, model, optimizer = prepared
    step(*prepared)
    save_checkpoint(accelerator, tmp_path, {"step": 1, "note": "kept"}, save_total_limit=2)
    step(*prepared)
    expected = [p.clone() for p in model.parameters()]
    load_checkpoint(accelerator, find_checkpoint(tmp_path, "latest"))
    assert read_state(find_checkpoint(tmp_path, "latest")) == {"step": 1, "note": "kept"}
    step(*prepared)  # with the random numbers and the moments of the first time
    assert all(torch.equal(one, other) for one, other in zip(expected, model.parameters(), strict=True))


def test_only_the_newest_are_kept(tmp_path, prepared):
    for number in (9, 10, 100):
        save_checkpoint(prepared[0], tmp_path, {"step": number}, save_total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_0000010", "step_0000100"]
    assert find_checkpoint(tmp_path, "latest").name == "step_0000100"


def test_an_unfinished_checkpoint_is_not_seen(tmp_path, prepared, monkeypatch):
    """A process that dies while saving leaves the one before; the next save clears what it left."""
    accelerator = prepared[0]
    save_checkpoint(accelerator, tmp_path, {"step": 1}, save_total_limit=1)

    def die(folder):
        (tmp_path / ".step_0000002.partial" / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "save_state", die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(accelerator, tmp_path, {"step": 2}, save_total_limit=1)
    assert find_checkpoint(tmp_path, "latest").name == "step_0000001"
    save_checkpoint(accelerator, tmp_path, {"step": 2}, save_total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000002"]
    assert read_state(find_checkpoint(tmp_path, "latest")) == {"step": 2}


def test_replacing_a_folder_never_mixes_old_and_new(tmp_path, prepared):
    folder = tmp_path / "model"
    for name in ("old.txt", "new.txt"):
        replace_folder(prepared[0], folder, lambda partial, name=name: (partial / name).write_text(name))
    assert [path.name for path in folder.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_resumed_is_named(tmp_path):
    with pytest.raises(ValueError, match='"latest", but .* holds no complete checkpoint'):
        find_checkpoint(tmp_path, "latest")
    (tmp_path / "step_0000005").mkdir()
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(ValueError, match="which is not a checkpoint folder"):
        find_checkpoint(tmp_path, str(tmp_path / "step_0000005"))
    (tmp_path / "step_0000005" / "run_state.json").write_text(json.dumps({"step": 5}))
    assert find_checkpoint(tmp_path, str(tmp_path / "step_0000005")).name == "step_0000005"
