"""
Distillation of two students by two processes under every backend: it equals one process on the same global batch, and
a resumed run equals one that was not interrupted; and students that have a process each.
"""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dinov2_hf.training.monitoring.monitor import read_metrics
from tests import forked_python
from tests.examples.conftest import forget_accelerate, load_example, without_pictures

from .conftest import RECIPE, clips_per_part, deepspeed, environment, launch_command


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
    values |= {"students": STUDENTS, "max_steps": 4, "save_steps": 2, "max_grad_norm": 1e6, "patch_chunk_size": 50}
    path = tmp_path_factory.mktemp("recipe") / "students.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def launch(students_recipe, teacher, images):
    def launch(config: str, output_dir: Path, *flags: str) -> subprocess.CompletedProcess:
        command = [*launch_command(config, 2, "distill_witness.py"), "--config", str(students_recipe)]
        command += ["--teacher", str(teacher), "--train_data", str(images), "--output_dir", str(output_dir)]
        command += ["--clip_per_part", str(clips_per_part(config)).lower(), *flags]
        return forked_python.run(command, env=environment(config))

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
def one_process(students_recipe, teacher, images, tmp_path_factory):
    """A run of one process on the global batch of eight images."""

    def one_process(*flags: str) -> dict:
        folder = tmp_path_factory.mktemp("alone") / "out"
        given = ["--config", str(students_recipe), "--teacher", str(teacher), "--train_data", str(images)]
        given += ["--output_dir", str(folder), "--per_device_train_batch_size", "8", *flags]
        forget_accelerate()
        with pytest.MonkeyPatch.context() as patch:
            without_pictures(patch)
            load_example("distill").main(given)
        return read(folder)

    return one_process


@pytest.fixture(scope="module")
def alone(one_process):
    return one_process()


def assert_equal(output_dir: Path, alone: dict) -> None:
    """Weights to 5e-5, where four steps of Adam move them by 4e-3: rounding counts most where gradients are near 0."""
    for name, (weights, losses) in read(output_dir).items():
        expected, wanted = alone[name]
        assert losses == pytest.approx(wanted, rel=2e-5)
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=5e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_equals_one_process_on_the_global_batch(launch, alone, tmp_path, backend):
    """Losses to 2e-5, and after four steps of Adam the weights of both students and their averages to 5e-5."""
    straight = launch(backend, tmp_path / "out")
    assert straight.returncode == 0, straight.stdout + straight.stderr
    assert_equal(tmp_path / "out", alone)
    if backend != "fsdp2":  # what others save of a module is tested with that of pretraining
        return
    straight = read(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "step_0000004")
    resumed = launch(backend, tmp_path / "out", "--resume_from_checkpoint", "latest")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    for name, (weights, losses) in read(tmp_path / "out").items():
        expected, wanted = straight[name]
        assert losses == wanted
        assert all(torch.equal(weights[key], value) for key, value in expected.items())


def test_students_with_a_process_each_see_the_global_batch(launch, one_process, tmp_path):
    """KoLeo, too: each of them has all eight images, as one process has."""
    entries = [str({**entry, "num_processes": 1}) for entry in STUDENTS]
    grouped = launch("ddp", tmp_path / "out", "--koleo_loss_weight", "0.1", "--students", *entries)
    assert grouped.returncode == 0, grouped.stdout + grouped.stderr
    assert_equal(tmp_path / "out", one_process("--koleo_loss_weight", "0.1"))
