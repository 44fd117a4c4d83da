"""A step that was not finite is kept under every kind of sharding, and by several processes replayed bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf.conversion.run_checkpoints import read_checkpoint
from dinov2_hf.runs.replay import replay_step
from tests import forked_python
from tests.examples.conftest import forget_accelerate

from .conftest import clips_per_part, deepspeed, environment, launch_command


STEPS = ("--max_steps", "3", "--save_steps", "1", "--eval_steps", "3")


def kept_step(launch, backend: str, folder):
    """Of a run whose second process meets a NaN in step 2."""
    clip = str(clips_per_part(backend)).lower()
    flags = ("--save_nonfinite_batch", "--eval_pictures", "1", *STEPS, "--clip_per_part", clip)
    run = launch(backend, folder / "out", *flags, POISONED_CALL="2")
    assert run.returncode == 0, run.printed
    return run.output_dir / "nonfinite_steps" / "step_0000002"


@pytest.mark.parametrize("backend", ["fsdp2", pytest.param("deepspeed_zero3", marks=deepspeed)])
def test_shards_are_kept_whole(launch, tmp_path, backend):
    """The weights are those of the checkpoint before the step; one process can replay them. Pictures are drawn too."""
    kept = kept_step(launch, backend, tmp_path)
    expected = read_checkpoint(tmp_path / "out" / "checkpoints" / "step_0000001").whole.state_dict()
    weights = load_file(kept / "weights.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (tmp_path / "out" / "pictures" / "step_0000003" / "patch_pca.png").is_file()
    forget_accelerate()
    found = replay_step(kept)
    assert len(found.caveats) == 2  # other processes, another backend
    assert found.passes[-1].process == 1
    assert len(found.passes[-1].not_finite) == 1


def test_two_processes_replay_their_own(launch, tmp_path):
    kept = kept_step(launch, "ddp", tmp_path)
    command = [*launch_command("ddp", 2, "")[:-1], "-m", "dinov2_hf", "replay", str(kept)]
    finished = forked_python.run(command, env=environment("ddp"))
    assert finished.returncode == 0, finished.stderr
    said = finished.stdout[finished.stdout.index("step 2") :]
    assert said.count("(the same as in the run, bit for bit)") == 2
    assert json.loads((kept / "step.json").read_text())["num_processes"] == 2
    forget_accelerate()
    (alone,) = (one for one in replay_step(kept).passes if one.process == 1)
    assert torch.tensor(alone.terms["loss"]).isnan()
