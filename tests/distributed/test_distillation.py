"""
Distillation of two students by two processes under every backend: it equals one process on the same global batch, and
a resumed run equals one that was not interrupted; and students that have a process each.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dinov2_hf.training.monitor import read_metrics
from tests.examples.conftest import forget_accelerate, load_example

from .conftest import CONFIGS, RECIPE, deepspeed, environment


# Sizes beyond ZeRO-3's limit of 100,000 elements are those of the backends' own tests.
STUDENTS = [{"name": "small", "hidden_size": 16, "num_attention_heads": 1}, {"name": "wide", "head_hidden_size": 24}]
BACKENDS = ["ddp", "fsdp2"]
BACKENDS += [pytest.param(f"deepspeed_zero{stage}", marks=deepspeed) for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def teacher(recipe, images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    forget_accelerate()
    flags = ["--max_steps", "2", "--num_prototypes", "64", "--output_dir", str(folder)]
    load_example("pretrain").main(["--config", str(recipe), "--train_data", str(images), *flags])
    return folder


@pytest.fixture(scope="module")
def students_recipe(tmp_path_factory) -> Path:
    values = {name: value for name, value in yaml.safe_load(RECIPE).items() if name != "num_prototypes"}
    # Without clipping, which DeepSpeed does by one norm over all students.
    values |= {"students": STUDENTS, "max_steps": 4, "save_steps": 2, "max_grad_norm": 1000.0, "patch_chunk_size": 50}
    path = tmp_path_factory.mktemp("recipe") / "students.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def launch(students_recipe, teacher, images):
    def launch(config: str, output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
        command += ["--num_processes", "2", "--main_process_port", str(port)]
        command += [str(Path(__file__).parent / "distill_witness.py"), "--config", str(students_recipe)]
        command += ["--teacher", str(teacher), "--train_data", str(images), "--output_dir", str(output_dir)]
        command += ["--clip_per_part", str(not config.startswith("deepspeed")).lower(), *flags]
        return subprocess.run(command, capture_output=True, text=True, env=environment(config), check=False)

    return launch


def read(output_dir: Path) -> dict[str, tuple[dict[str, torch.Tensor], list[float]]]:
    """Weights and losses of each student."""
    return {
        name: (
            load_file(output_dir / "students" / name / "pretraining_model" / "model.safetensors"),
            [record["loss"] for record in read_metrics(output_dir / "students" / name / "metrics.jsonl")],
        )
        for name in ("small", "wide")
    }


@pytest.fixture(scope="module")
def alone(students_recipe, teacher, images, tmp_path_factory):
    """One process on the global batch of eight images."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    forget_accelerate()
    sys.path.insert(0, str(CONFIGS.parent))
    flags = ["--teacher", str(teacher), "--train_data", str(images), "--output_dir", str(folder)]
    load_example("distill").main(
        ["--config", str(students_recipe), *flags, "--per_device_train_batch_size", "8"]
    )
    sys.path.remove(str(CONFIGS.parent))
    return read(folder)


def assert_equal(output_dir: Path, alone) -> None:
    for name, (weights, losses) in read(output_dir).items():
        expected, wanted = alone[name]
        assert losses == pytest.approx(wanted, rel=2e-5)
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_equals_one_process_and_resumes(launch, alone, tmp_path, backend):
    straight = launch(backend, tmp_path / "out")
    assert straight.returncode == 0, straight.stdout + straight.stderr
    assert_equal(tmp_path / "out", alone)
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "out", resumed)
    shutil.rmtree(resumed / "checkpoints" / "step_0000004")
    again = launch(backend, resumed, "--resume_from_checkpoint", "latest")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "step 4" not in again.stderr
    for name, (weights, losses) in read(resumed).items():
        expected, wanted = read(tmp_path / "out")[name]
        assert losses == wanted
        assert all(torch.equal(weights[key], value) for key, value in expected.items())


@pytest.mark.parametrize("koleo_loss_weight", ["0.0", "0.1"])
def test_students_with_a_process_each_see_the_global_batch(
    launch, students_recipe, teacher, images, alone, tmp_path, koleo_loss_weight
):
    """KoLeo, too: each of them has all eight images, as one process has."""
    entries = [str({**entry, "num_processes": 1}) for entry in STUDENTS]
    flags = ("--koleo_loss_weight", koleo_loss_weight, "--students", *entries)
    grouped = launch("ddp", tmp_path / "out", *flags)
    assert grouped.returncode == 0, grouped.stdout + grouped.stderr
    if koleo_loss_weight == "0.0":
        assert_equal(tmp_path / "out", alone)
        return
    forget_accelerate()
    sys.path.insert(0, str(CONFIGS.parent))
    given = ["--config", str(students_recipe), "--teacher", str(teacher), "--train_data", str(images)]
    given += ["--output_dir", str(tmp_path / "one"), "--koleo_loss_weight", "0.1"]
    load_example("distill").main([*given, "--per_device_train_batch_size", "8"])
    sys.path.remove(str(CONFIGS.parent))
    assert_equal(tmp_path / "out", read(tmp_path / "one"))
    records, others = (
        read_metrics(tmp_path / folder / "students" / "small" / "metrics.jsonl") for folder in ("out", "one")
    )
    assert [record["koleo_loss"] for record in records] == pytest.approx(
        [record["koleo_loss"] for record in others], rel=1e-4
    )


def test_groups_that_do_not_fit_are_one_sentence(launch, tmp_path):
    flags = ("--students", "{name: a, num_processes: 2}", "{name: b, num_processes: 1}")
    wrong = launch("ddp", tmp_path / "out", *flags)
    assert wrong.returncode != 0
    assert "error: `num_processes` of the students are 2, 1, together 3, but the run has 2 processes" in (
        wrong.stdout + wrong.stderr
    )
    assert not os.path.exists(tmp_path / "out")
