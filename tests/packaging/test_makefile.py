"""What `make` removes is what `make` made."""

import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "setup.py").touch()
    return tmp_path


def make(checkout: Path, target: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", target, "PYTHON=false"], cwd=checkout, capture_output=True, text=True, check=False)


def test_clean_leaves_outputs_and_the_environments_of_others(checkout):
    kept = [checkout / "outputs" / "my_run" / "model" / "model.safetensors", checkout / "dist" / "mine.whl"]
    environment = checkout / ".venv" / "bin" / "python"
    for path in [*kept, environment]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert make(checkout, "clean").returncode == 0
    assert all(path.exists() for path in [*kept, environment])
    (checkout / ".venv" / "made_by_make").touch()
    assert make(checkout, "clean").returncode == 0
    assert not environment.exists()
    assert all(path.exists() for path in kept)


def test_an_environment_of_somebody_else_is_not_installed_into(checkout):
    (checkout / ".venv").mkdir()
    done = make(checkout, ".venv/installed")
    assert done.returncode != 0
    assert "was not made by make" in done.stderr
    assert not list((checkout / ".venv").iterdir())
