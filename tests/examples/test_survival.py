"""What runs survive: kills, signals, other numbers of processes, full disks, losses that are not finite."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dinov2_hf.data import SkippedImageLog
from dinov2_hf.runs import loop
from dinov2_hf.training.checkpointing import checkpoints
from dinov2_hf.training.checkpointing.checkpoints import find_checkpoint
from dinov2_hf.training.preemption import PREEMPTION_SIGNALS
from tests import forked_python

from .conftest import changed_batches
from .test_pretrain import assert_same_run, run


IMPORT_PRETRAIN = """
import importlib.util, os, random, signal, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("pretrain", sys.argv[1])
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)
from dinov2_hf.runs.ending import outputs
"""

# Forks from one process that has imported everything: a new interpreter for each of eleven attempts takes a minute.
KILLED_TEN_TIMES = (
    IMPORT_PRETRAIN
    + """
output_dir, flags, rng = Path(sys.argv[2]), sys.argv[3:], random.Random(0)
outputs.plot_training_curves = lambda *_, **__: None  # takes 20 times as long as a step

def num_records():
    path = output_dir / "metrics.jsonl"
    return path.read_text().count("\\n") if path.exists() else 0

def start():
    child = os.fork()
    if child == 0:
        resumed = any((output_dir / "checkpoints").glob("step_*"))
        pretrain.main([*flags, *(["--resume_from_checkpoint", "latest"] if resumed else [])])
        sys.stdout.flush()
        os._exit(0)
    return child

for number in range(10):
    wanted = num_records() + rng.randint(3, 6)
    child = start()
    while num_records() < wanted:
        ended, status = os.waitpid(child, os.WNOHANG)
        assert not ended, f"attempt {number} ended with {status} before it was killed"
        time.sleep(0.002)
    time.sleep(rng.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    print("killed after", num_records())
assert os.waitpid(start(), 0)[1] == 0
"""
)


def records(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def flags_of(recipe, images, output_dir, *flags: str) -> list[str]:
    return ["--config", recipe, "--train_data", str(images), "--output_dir", str(output_dir), *flags]


def test_ten_kills_change_nothing(pretrain, recipe, images, tmp_path):
    """SIGKILL at random moments of random steps; ends bit-equal to the run that nobody disturbed."""
    flags = ("--max_steps", "100", "--save_steps", "3", "--eval_steps", "1000")
    run(pretrain, recipe, images, tmp_path / "straight", *flags)
    command = ["-c", KILLED_TEN_TIMES, pretrain.__file__, tmp_path / "killed"]
    finished = forked_python.run([*command, *flags_of(recipe, images, tmp_path / "killed", *flags)])
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("killed after") == 10
    assert (tmp_path / "killed" / "model" / "model.safetensors").is_file()
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.fixture
def own_signal_handlers():
    """A preempted run leaves its handlers behind, as its process is about to end."""
    before = {number: signal.getsignal(number) for number in PREEMPTION_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preempted_run_saves_and_continues_exactly(
    pretrain, recipe, images, tmp_path, monkeypatch, capfd, own_signal_handlers, number
):
    flags = ("--save_steps", "100", "--dataloader_num_workers", "1")
    run(pretrain, recipe, images, tmp_path / "straight", *flags)
    steps = []

    def signalled(*arguments):
        steps.append(update_ema(*arguments))
        if len(steps) == 2:  # while step 2 ends, so that step 3 is the first to see it
            os.kill(os.getpid(), number)

    update_ema = pretrain.update_ema
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "update_ema", signalled)
        with pytest.raises(SystemExit) as stop:
            run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert stop.value.code == 75
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert checkpoint.name == "step_0000003"
    assert f"stopped: {number.name} asked for it after step 3, which is saved. --resume" in capfd.readouterr().err
    run(pretrain, recipe, images, tmp_path / "out", *flags, "--resume_from_checkpoint", "latest")
    assert_same_run(tmp_path / "straight", tmp_path / "out")


def launch(pretrain, port, *flags: str) -> tuple[list[str], dict[str, str]]:
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(port), pretrain.__file__, *flags, "--per_device_train_batch_size", "2"]
    return command, {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def children(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes of a launcher in /proc")
@pytest.mark.parametrize("receiver", ["one process", "launcher"])
def test_two_processes_stop_after_the_same_step(pretrain, recipe, images, tmp_path, free_port, receiver):
    """SIGUSR1 to one of the two, or SIGTERM to the launcher, which hands it on."""
    flags = flags_of(recipe, images, tmp_path / "out", "--max_steps", "5000", "--save_steps", "5000")
    flags += ["--eval_steps", "5000", "--dataloader_num_workers", "1"]
    command, environment = launch(pretrain, free_port, *flags)
    command = [sys.executable, *command]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "out" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    if receiver == "launcher":
        process.terminate()
    else:
        os.kill(children(process.pid)[-1], signal.SIGUSR1)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 1  # the launcher's own; those of the processes are 75
    if receiver == "one process":
        assert "exitcode  : 75" in printed
    assert printed.count("stopped: ") == 1
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    state = json.loads((checkpoint / "run_state.json").read_text())
    assert state["step"] == len(records(tmp_path / "out")) < 5000
    assert {path.name for path in checkpoint.iterdir()} >= {"random_states_0.pkl", "random_states_1.pkl"}
    assert find_checkpoint(checkpoint.parent, "latest") == checkpoint


def test_one_process_then_two_then_one(pretrain, recipe, images, tmp_path, free_port):
    """
    Steps 1-2 and 5-6 on one process, 3-4 on two, with the same eight images in each step.

    Without what a process draws or compares for itself (masks, stochastic depth, KoLeo), losses are those of one
    process: to 1e-5, since sums are made in another order. In the first part, where nothing changes, exactly.
    """
    alike = ("--mask_probability", "0", "--drop_path_rate", "0", "--koleo_loss_weight", "0")
    run(pretrain, recipe, images, tmp_path / "one", *alike, "--per_device_train_batch_size", "8")
    shutil.copytree(tmp_path / "one" / "checkpoints" / "step_0000002", tmp_path / "start")
    flags = flags_of(recipe, images, tmp_path / "two", *alike, "--resume_from_checkpoint", str(tmp_path / "start"))
    command, environment = launch(pretrain, free_port, *flags)
    command[command.index("--per_device_train_batch_size") + 1] = "4"
    finished = forked_python.run(command, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert "8 = 4 per device x 1 accumulated x 2 processes" in finished.stdout
    shutil.copytree(tmp_path / "two" / "checkpoints" / "step_0000004", tmp_path / "again")
    run(
        pretrain, recipe, images, tmp_path / "last", *alike, "--per_device_train_batch_size", "8",
        "--resume_from_checkpoint", str(tmp_path / "again"),
    )  # fmt: skip
    expected = [record["loss"] for record in records(tmp_path / "one")]
    middle = [record["loss"] for record in records(tmp_path / "two")]
    last = [record["loss"] for record in records(tmp_path / "last")]
    assert middle == pytest.approx(expected[2:], rel=1e-5)
    assert last == pytest.approx(expected[4:], rel=1e-5)
    assert [record["step"] for record in records(tmp_path / "last")] == [5, 6]


def test_another_accumulation_sees_the_same_images_in_the_same_steps(pretrain, recipe, images, tmp_path, monkeypatch):
    """From an odd number of steps with one pass to steps of two passes."""
    seen = []
    monkeypatch.setattr(SkippedImageLog, "add", lambda _, report: seen.extend(report.row_ids))
    run(pretrain, recipe, images, tmp_path / "straight", "--save_steps", "3")
    straight = list(seen)
    seen.clear()
    start = str(tmp_path / "straight" / "checkpoints" / "step_0000003")
    divided = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2")
    run(pretrain, recipe, images, tmp_path / "divided", *divided, "--resume_from_checkpoint", start)
    assert seen == straight[3 * 4 :]
    moments = torch.load(tmp_path / "divided" / "checkpoints" / "step_0000006" / "optimizer.bin")["state"]
    assert {int(values["step"]) for values in moments.values()} == {6}
    with pytest.raises(SystemExit, match="is 2 x 1 x 1 = 2 images a step, but .* is from a run with 4"):
        run(pretrain, recipe, images, tmp_path / "x", *divided[:2], "--resume_from_checkpoint", start)


DISK_OF_ONE_RUN = """
set -e
mount -t tmpfs -o size=%d tmpfs "$1"
status=0
out=$1 kept=$2
shift 2
"$@" || status=$?
ls -A "$out/checkpoints" || exit $status
cp -r "$out/checkpoints" "$kept"
exit $status
"""


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="mounts a small disk, which needs user namespaces")
def test_a_full_disk_stops_the_run_with_the_checkpoint_before(pretrain, recipe, images, tmp_path):
    """On a disk with room for one checkpoint and a half; resumed elsewhere, it ends as the run with room."""
    run(pretrain, recipe, images, tmp_path / "straight")
    size = sum(path.stat().st_size for path in (tmp_path / "straight" / "checkpoints" / "step_0000002").iterdir())
    (tmp_path / "out").mkdir()
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", DISK_OF_ONE_RUN % (1.5 * size), "sh"]
    command += [str(tmp_path / "out"), str(tmp_path / "kept")]
    finished = subprocess.run(
        [*command, sys.executable, pretrain.__file__, *flags_of(recipe, images, tmp_path / "out")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stderr
    (sentence,) = (line for line in finished.stderr.splitlines() if "stopped: " in line)
    assert "step_0000004 could not be written (" in sentence
    assert sentence.endswith("latest continues from " + str(tmp_path / "out" / "checkpoints" / "step_0000002") + ".")
    assert "Traceback" not in finished.stderr
    assert finished.stdout.splitlines()[-1] == "step_0000002"  # and no unfinished folder
    shutil.copytree(tmp_path / "kept", tmp_path / "room" / "checkpoints")
    run(pretrain, recipe, images, tmp_path / "room", "--resume_from_checkpoint", "latest")
    ended, expected = (
        load_file(tmp_path / name / "pretraining_model" / "model.safetensors") for name in ("room", "straight")
    )
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


@pytest.mark.skipif(not can_mount(), reason="mounts a small disk, which needs user namespaces")
@pytest.mark.parametrize("size", [4096, 8192, 12288])
def test_a_disk_that_is_full_from_the_start_is_one_sentence(pretrain, recipe, images, tmp_path, size):
    """With room for the marker, and for recipe and first metrics; the run ends before its first checkpoint."""
    (tmp_path / "out").mkdir()
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", DISK_OF_ONE_RUN % size, "sh"]
    command += [str(tmp_path / "out"), str(tmp_path / "kept")]
    finished = subprocess.run(
        [*command, sys.executable, pretrain.__file__, *flags_of(recipe, images, tmp_path / "out")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    (sentence,) = (line for line in finished.stderr.splitlines() if "stopped: " in line)
    assert "could not be written" in sentence


def test_a_checkpoint_that_fails_behind_the_run_stops_it(pretrain, recipe, images, tmp_path, monkeypatch):
    """With the sentence of one that fails before it, and before the next one."""

    def write_manifest(partial):
        if partial.name == "step_0000004":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(partial)

    write = checkpoints.write_manifest
    monkeypatch.setattr(checkpoints, "write_manifest", write_manifest)
    with pytest.raises(SystemExit) as stop:
        run(pretrain, recipe, images, tmp_path / "out", "--max_steps", "50", "--logging_steps", "50")
    assert "step_0000004 could not be written ([Errno 28] No space left on device) on a disk" in str(stop.value)
    (kept,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert str(stop.value).endswith(f"--resume_from_checkpoint latest continues from {kept}.")
    assert kept.name == "step_0000002"


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "softmax"])
def test_a_poisoned_step_is_left_out_and_resuming_stays_exact(
    pretrain, recipe, images, tmp_path, monkeypatch, centering
):
    """Steps 3 and 4 of 6 meet a NaN: weights stay finite, rows are listed, and a run resumed between them agrees."""
    calls, flags = [], ("--centering", centering, "--save_steps", "1", "--save_total_limit", "6")

    def poison(batch):
        calls.append(batch)
        if first_step + len(calls) in (3, 4):
            batch["local_crops"][0, 1, 0, 3, 3] = torch.nan

    monkeypatch.setattr(loop.Step, "batches", changed_batches(poison))
    first_step = 0
    run(pretrain, recipe, images, tmp_path / "straight", *flags)
    shutil.copytree(
        tmp_path / "straight" / "checkpoints" / "step_0000003", tmp_path / "resumed/checkpoints/step_0000003"
    )
    for name in ("metrics.jsonl", "nonfinite_steps.jsonl"):
        shutil.copy(tmp_path / "straight" / name, tmp_path / "resumed" / name)
    calls.clear()
    first_step = 3
    run(pretrain, recipe, images, tmp_path / "resumed", *flags, "--resume_from_checkpoint", "latest")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    left_out = (tmp_path / "straight" / "nonfinite_steps.jsonl").read_text()
    assert left_out == (tmp_path / "resumed" / "nonfinite_steps.jsonl").read_text()
    assert [json.loads(line)["step"] for line in left_out.splitlines()] == [3, 4]
    assert left_out.count(".png") == 8
    assert [record["nonfinite_steps"] for record in records(tmp_path / "straight")] == [0, 0, 1, 2, 2, 2]
    assert [record["loss"] is None for record in records(tmp_path / "straight")] == [False] * 2 + [True] * 2 + [
        False
    ] * 2
    before, after = (
        load_file(tmp_path / "straight" / "checkpoints" / f"step_000000{step}" / "model.safetensors")
        for step in (2, 4)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    ended = load_file(tmp_path / "straight" / "pretraining_model" / "model.safetensors")
    assert all(value.isfinite().all() for value in ended.values())
    assert not torch.equal(
        ended["student.backbone.embeddings.cls_token"], after["student.backbone.embeddings.cls_token"]
    )


def test_a_run_is_the_same_however_late_the_host_reads_its_votes(pretrain, recipe, images, tmp_path, monkeypatch):
    """With a log line after each step, which reads them at once, and with one at the end."""
    calls = []

    def poison(batch):
        calls.append(batch)
        if len(calls) % 6 in (3, 4):
            batch["local_crops"][0, 1, 0, 3, 3] = torch.nan

    monkeypatch.setattr(loop.Step, "batches", changed_batches(poison))
    flags = ("--centering", "softmax", "--save_steps", "6", "--eval_steps", "6")
    for name, logging_steps in (("at once", "1"), ("late", "6")):
        run(pretrain, recipe, images, tmp_path / name, *flags, "--logging_steps", logging_steps)
    ends = [tmp_path / name / "checkpoints" / "step_0000006" for name in ("at once", "late")]
    one, other = (load_file(checkpoint / "model.safetensors") for checkpoint in ends)
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (json.loads((checkpoint / "run_state.json").read_text()) for checkpoint in ends)
    assert one["nonfinite_steps"] == other["nonfinite_steps"] == 2
    one, other = ((tmp_path / name / "nonfinite_steps.jsonl").read_text() for name in ("at once", "late"))
    assert one == other
    every_step, (whole,) = records(tmp_path / "at once"), records(tmp_path / "late")
    assert whole["loss"] == pytest.approx(sum(r["loss"] for r in every_step if r["loss"]) / 4, rel=1e-6)
