"""The job script, with programs in the place of srun and scontrol that do what Slurm would do on one node."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from .conftest import EXAMPLES


# Starts the tasks, and sends the announcement to each of them once the run has logged three steps.
SRUN = """#!{python}
import os, pathlib, signal, subprocess, sys, time
metrics = pathlib.Path(os.environ["OUTPUT_DIR"]) / "metrics.jsonl"
tasks = []
for number in range(2):
    task = {{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NTASKS": "2"}}
    tasks.append(subprocess.Popen(sys.argv[1:], env={{**os.environ, **task}}))
if os.environ["ANNOUNCE"]:
    while not (metrics.exists() and metrics.read_text().count("\\n") >= 3):
        assert all(task.poll() is None for task in tasks)
        time.sleep(0.05)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; echo other; else echo "$@" > "$REQUEUED"; fi
"""


def free_port() -> int:
    """From 20000 to 39999, as the script chooses."""
    for port in range(20000 + os.getpid() % 10000, 40000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("every port is taken")


@pytest.mark.skipif(shutil.which("bash") is None, reason="the job script is for bash")
def test_a_job_is_requeued_and_continues(recipe, images, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    for name, text in {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent / "src"),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(free_port() - 20000),  # from which the script makes the port
        "SLURM_JOB_NODELIST": "localhost,other",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "examples/slurm/pretrain.sbatch", "--config", recipe, "--train_data", str(images)]
    command += ["--per_device_train_batch_size", "2", "--save_steps", "1000", "--eval_steps", "1000"]
    command += ["--allow_recipe_change"]  # the second ends earlier than the first would have

    def submit(announce: str, max_steps: str, **more: str):
        return subprocess.run(
            [*command, "--max_steps", max_steps],
            cwd=EXAMPLES.parent, env={**environment, "ANNOUNCE": announce, **more}, capture_output=True, text=True,
        )  # fmt: skip

    first = submit("yes", "3000")
    assert first.returncode == 75, first.stderr
    assert (tmp_path / "requeued").read_text() == f"requeue {environment['SLURM_JOB_ID']}\n"
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    (tmp_path / "requeued").unlink()
    second = submit("", str(int(checkpoint.name.removeprefix("step_")) + 1), SLURM_RESTART_COUNT="1")
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert f"  steps               {int(checkpoint.name[5:])} of " in second.stdout
    assert not (tmp_path / "requeued").exists()
