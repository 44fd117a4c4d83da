"""Real pickles that would run code, planted in real checkpoints, with the manifest renewed."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from dinov2_hf.training.checkpointing.checkpoint_manifest import write_manifest
from dinov2_hf.training.checkpointing.checkpoint_pickles import data_only, refuse_code
from dinov2_hf.training.checkpointing.checkpoints import find_checkpoint, load_checkpoint

from .saved_checkpoints import save_checkpoint


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.fixture
def planted(tmp_path):
    """What is planted; at the end of a test it has not run."""
    ran = tmp_path / "it ran"
    yield Planted(ran)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Planted(ran)))  # as it would have
    assert ran.exists()


@pytest.fixture
def prepared():
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    accelerator.backward(model(torch.randn(4, 3)).square().sum())
    optimizer.step()
    return accelerator, model, optimizer


@pytest.fixture
def checkpoint(tmp_path, prepared):
    return save_checkpoint(prepared[0], tmp_path / "checkpoints", {"step": 1}, save_total_limit=1)


def raw(value, path):
    path.write_bytes(pickle.dumps(value))


def legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, legacy, raw])
@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "pytorch_model/mp_rank_00_model_states.pt"])
def test_code_in_a_file_of_torch_is_refused(checkpoint, planted, name, write):
    """The last is DeepSpeed's."""
    (checkpoint / name).parent.mkdir(exist_ok=True)
    write({"module": {"w": torch.zeros(2)}, "state": planted}, checkpoint / name)
    write_manifest(checkpoint)
    for wanted in ("latest", str(checkpoint)):
        with pytest.raises(ValueError, match=f"_0000001 is not read, because its {name} (asks for|is not a file of)"):
            find_checkpoint(checkpoint.parent, wanted)


def test_the_name_that_is_asked_for_is_said(checkpoint, planted):
    torch.save(planted, checkpoint / "optimizer.bin")
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=r"optimizer.bin asks for pathlib[\w.]*\.Path\.mkdir|asks for .*getattr"):
        find_checkpoint(checkpoint.parent, "latest")


def test_torchscript_is_refused(checkpoint):
    torch.jit.script(torch.nn.Linear(3, 2)).save(checkpoint / "optimizer.bin")
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="optimizer.bin is not a file of torch.save"):
        find_checkpoint(checkpoint.parent, "latest")


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_code_does_not_run_where_it_was_not_looked_for(checkpoint, planted, prepared, name):
    torch.save(planted, checkpoint / name)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_checkpoint(prepared[0], checkpoint)


def test_readers_that_trust_their_files_read_data_alone(tmp_path, planted):
    """As DeepSpeed's does."""
    torch.save(planted, tmp_path / "states.pt")
    with data_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "states.pt", weights_only=False)
    torch.save({"w": torch.ones(2)}, tmp_path / "states.pt")
    with data_only():
        assert torch.load(tmp_path / "states.pt", weights_only=False)["w"].sum() == 2


@pytest.fixture
def sharded(tmp_path):
    """As FSDP2 saves: written by torch.distributed.checkpoint, with a value that is no tensor."""
    dcp.save(
        {"w": torch.arange(6.0), "step": 3, "betas": (0.9, 0.999)}, checkpoint_id=tmp_path / "shards" / "optimizer_0"
    )
    return tmp_path / "shards"


def test_shards_pass(sharded):
    refuse_code(sharded)
    state = {"w": torch.zeros(6), "step": 0, "betas": (0.0, 0.0)}
    with data_only():
        dcp.load(state, checkpoint_id=sharded / "optimizer_0")
    assert (state["step"], state["betas"], state["w"].sum()) == (3, (0.9, 0.999), 15)


def test_code_in_the_list_of_shards_is_refused(sharded, planted):
    path = sharded / "optimizer_0" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = planted
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"optimizer_0/.metadata asks for .*checkpoint of dinov2_hf hold only data"):
        refuse_code(sharded)
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"its optimizer_0/.metadata is not a list of shards"):
        refuse_code(sharded)


def test_code_in_a_value_between_shards_does_not_run(sharded, planted):
    shutil.rmtree(sharded / "optimizer_0")
    dcp.save({"step": planted}, checkpoint_id=sharded / "optimizer_0")
    with data_only(), pytest.raises((CheckpointException, pickle.UnpicklingError)):
        dcp.load({"step": 0}, checkpoint_id=sharded / "optimizer_0")


def test_a_random_state_that_is_missing_or_another_is_not_passed_over(checkpoint):
    path = checkpoint / "random_states_0.pkl"
    states = torch.load(path, weights_only=False)
    torch.save({"step": 0}, path)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="continued exactly: its random_states_0.pkl holds no random states"):
        find_checkpoint(checkpoint.parent, "latest")
    torch.save({**states, "random_state": "half"}, path)  # which accelerate passes over
    write_manifest(checkpoint)
    find_checkpoint(checkpoint.parent, "latest")
    torch.manual_seed(99)
    with pytest.raises(ValueError, match="random_states_0.pkl could not be put back as the random state"):
        load_checkpoint(Accelerator(cpu=True), checkpoint)
    path.unlink()
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="cannot be continued exactly: its random_states_0.pkl is missing"):
        find_checkpoint(checkpoint.parent, "latest")
