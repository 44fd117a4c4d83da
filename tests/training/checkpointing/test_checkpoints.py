"""Checkpoints are whole or not there."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from dinov2_hf.training.checkpointing.checkpoint_folders import list_checkpoints, read_state
from dinov2_hf.training.checkpointing.checkpoint_manifest import write_manifest
from dinov2_hf.training.checkpointing.checkpoints import CheckpointSaver, find_checkpoint, load_checkpoint
from dinov2_hf.training.processes import shared_folders
from dinov2_hf.training.processes.shared_folders import replace_folder
from dinov2_hf.training.run_stopped import RunStopped

from .saved_checkpoints import save_checkpoint


@pytest.fixture
def prepared():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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


def test_only_the_newest_are_kept(tmp_path, prepared, monkeypatch):
    for number in (9, 10, 100):
        save_checkpoint(prepared[0], tmp_path, {"step": number}, save_total_limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_0000010", "step_0000100"]
    assert find_checkpoint(tmp_path, "latest").name == "step_0000100"
    assert find_checkpoint(tmp_path / "another", str(tmp_path / "latest")) == find_checkpoint(tmp_path, "latest")
    (tmp_path / "elsewhere" / "latest").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_checkpoint(tmp_path, "latest").name == "step_0000100"


def test_an_unfinished_checkpoint_is_not_seen(tmp_path, prepared, monkeypatch):
    """A process that dies while saving leaves the one before; the next save clears what it left."""
    accelerator = prepared[0]
    save_checkpoint(accelerator, tmp_path, {"step": 1}, save_total_limit=1)

    def die(folder):
        (Path(folder) / "model.safetensors").write_text("half")
        os._exit(9)  # as a kill would

    with monkeypatch.context() as patch:
        patch.setattr(accelerator, "save_state", die)
        child = os.fork()
        if not child:
            save_checkpoint(accelerator, tmp_path, {"step": 2}, save_total_limit=1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(list(tmp_path.glob(".step_0000002.*.unfinished"))) == 1
    (tmp_path / ".step_0000002.old").write_text("of the user")
    assert find_checkpoint(tmp_path, "latest").name == "step_0000001"
    save_checkpoint(accelerator, tmp_path, {"step": 3}, save_total_limit=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step_0000002.old", "step_0000003"]
    (tmp_path / ".step_0000002.old").unlink()
    save_checkpoint(accelerator, tmp_path, {"step": 2}, save_total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000002"]
    assert read_state(find_checkpoint(tmp_path, "latest")) == {"step": 2}


def test_replacing_a_folder_never_mixes_old_and_new(tmp_path, prepared):
    folder = tmp_path / "model"
    for name in ("old.txt", "new.txt"):
        write = lambda partial, name=name: (partial / name).write_text(name)  # noqa: E731
        replace_folder(prepared[0], folder, write, kind="model")
    assert sorted(path.name for path in folder.iterdir()) == [".dinov2_hf.json", "new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_resumed_is_named(tmp_path):
    with pytest.raises(ValueError, match='"latest", but .* holds no complete checkpoint'):
        find_checkpoint(tmp_path, "latest")
    (tmp_path / "step_0000005").mkdir()
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(ValueError, match='/latest", but .* holds no complete checkpoint; .* --overwrite_output_dir'):
        find_checkpoint(tmp_path / "another", str(tmp_path / "latest"))
    with pytest.raises(ValueError, match="which is not a checkpoint folder"):
        find_checkpoint(tmp_path, str(tmp_path / "step_0000005"))
    (tmp_path / "step_0000005" / "run_state.json").write_text(json.dumps({"step": 5}))
    with pytest.raises(ValueError, match=r"step_0000005, which is damaged: it has no manifest.json"):
        find_checkpoint(tmp_path, str(tmp_path / "step_0000005"))
    write_manifest(tmp_path / "step_0000005")
    with pytest.raises(ValueError, match="cannot be continued exactly: its random_states_0.pkl is missing"):
        find_checkpoint(tmp_path, str(tmp_path / "step_0000005"))


@pytest.mark.parametrize("content", ["{", "[1]", '{"step": -5}', "{}"])
def test_a_state_that_is_none_is_one_sentence(tmp_path, prepared, content):
    """Checksums can be right all the same, where a file was edited and they were renewed."""
    checkpoint = save_checkpoint(prepared[0], tmp_path, {"step": 1}, save_total_limit=1)
    (checkpoint / "run_state.json").write_text(content)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="run_state.json does not hold the state of a run"):
        find_checkpoint(tmp_path, "latest")


def test_weights_that_are_cut_short_are_one_sentence(tmp_path, prepared):
    checkpoint = save_checkpoint(prepared[0], tmp_path, {"step": 1}, save_total_limit=1)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="could not be put into this run"):
        load_checkpoint(prepared[0], find_checkpoint(tmp_path, "latest"))


def test_latest_passes_over_damaged_checkpoints_and_says_so(tmp_path, prepared, caplog):
    for number in (1, 2, 3):
        save_checkpoint(prepared[0], tmp_path, {"step": number}, save_total_limit=3)
    flip_a_bit(tmp_path / "step_0000003" / "model.safetensors")
    (tmp_path / "step_0000002" / "optimizer.bin").write_bytes(b"half")
    assert find_checkpoint(tmp_path, "latest").name == "step_0000001"
    assert "step_0000003 is damaged: its model.safetensors is not what was saved (SHA-256 differs)" in caplog.text
    assert "step_0000002 is damaged: its optimizer.bin has 4 bytes instead of" in caplog.text
    assert caplog.text.count("continuing from step_0000001") == 2
    with pytest.raises(ValueError, match=r"which is damaged: its model.safetensors is not what was saved"):
        find_checkpoint(tmp_path, str(tmp_path / "step_0000003"))
    (tmp_path / "step_0000001" / "random_states_0.pkl").unlink()
    with pytest.raises(ValueError, match=r"holds no complete checkpoint \(.*its random_states_0.pkl is missing\)"):
        find_checkpoint(tmp_path, "latest")


def test_a_new_checkpoint_that_does_not_read_back_deletes_nothing(tmp_path, prepared, monkeypatch, caplog):
    save_checkpoint(prepared[0], tmp_path, {"step": 1}, save_total_limit=1)

    def lose_a_bit(source, target):
        real_put_in_place(source, target)
        flip_a_bit(tmp_path / "step_0000002" / "optimizer.bin")

    real_put_in_place = shared_folders.put_in_place
    with monkeypatch.context() as patch:
        patch.setattr(shared_folders, "put_in_place", lose_a_bit)
        save_checkpoint(prepared[0], tmp_path, {"step": 2}, save_total_limit=1)
    assert "step_0000002 was saved, but its optimizer.bin is not what was saved" in caplog.text
    assert find_checkpoint(tmp_path, "latest").name == "step_0000001"
    save_checkpoint(prepared[0], tmp_path, {"step": 2}, save_total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000002"]


def test_later_checkpoints_of_an_abandoned_course_are_deleted(tmp_path, prepared):
    for number in (1, 2, 3, 4):
        save_checkpoint(prepared[0], tmp_path, {"step": number}, save_total_limit=4)
    save_checkpoint(prepared[0], tmp_path, {"step": 2, "note": "again"}, save_total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000002"]
    assert read_state(find_checkpoint(tmp_path, "latest"))["note"] == "again"


@pytest.mark.parametrize("failing", ["save_state", "seal"])
def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(tmp_path, prepared, monkeypatch, failing):
    accelerator = prepared[0]
    save_checkpoint(accelerator, tmp_path, {"step": 1}, save_total_limit=1)

    def disk_is_full(folder):
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "save_state":
            patch.setattr(accelerator, "save_state", disk_is_full)
        else:
            patch.setattr("dinov2_hf.training.checkpointing.checkpoints.write_manifest", disk_is_full)
        with pytest.raises(RunStopped, match=r"step_0000002 could not be written \(.*No space left.* GB free"):
            save_checkpoint(accelerator, tmp_path, {"step": 2}, save_total_limit=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000001"]
    assert find_checkpoint(tmp_path, "latest").name == "step_0000001"


def test_a_checkpoint_is_completed_while_the_run_goes_on(tmp_path, prepared, monkeypatch):
    """By the weights and the state that it was saved with, whatever becomes of them."""
    accelerator, model, optimizer = prepared
    saver, gone_on, state = CheckpointSaver(accelerator, tmp_path, 1), threading.Event(), {"step": 1}

    def write_later(partial):
        assert gone_on.wait(60)
        write_manifest(partial)

    monkeypatch.setattr("dinov2_hf.training.checkpointing.checkpoints.write_manifest", write_later)
    saved = [parameter.clone() for parameter in model.parameters()]
    saver.save(state)
    step(*prepared)
    state["step"] = 2
    assert list_checkpoints(tmp_path) == []
    assert not saver.has_failed()
    gone_on.set()
    saver.wait()
    checkpoint = find_checkpoint(tmp_path, "latest")
    assert read_state(checkpoint) == {"step": 1}
    load_checkpoint(accelerator, checkpoint)
    assert all(torch.equal(one, other) for one, other in zip(saved, model.parameters(), strict=True))


def test_an_error_in_the_background_is_voted_on_and_raised(tmp_path, prepared, monkeypatch):
    saver = CheckpointSaver(prepared[0], tmp_path, 1)

    def disk_is_full(partial):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dinov2_hf.training.checkpointing.checkpoints.write_manifest", disk_is_full)
    saver.save({"step": 1})
    saver.close()
    assert saver.has_failed()
    with pytest.raises(RunStopped, match=r"step_0000001 could not be written \(.*No space left.* GB free"):
        saver.wait()
    assert not saver.has_failed()
    assert list(tmp_path.iterdir()) == []
