"""What `dinov2-hf doctor` says of this machine, and what it never says."""

import json
from importlib.metadata import version

import pytest
import torch

from dinov2_hf.cli import doctor as module
from tests.cli.typed_commands import run


TOKEN = "hf_" + "a" * 34


@pytest.fixture
def found(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run("doctor", "--json")
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    return json.loads(said.out), said.err


def test_this_machine(found):
    facts, said = found
    assert facts["versions"]["torch"] == version("torch")
    assert f"torch                   {version('torch')}" in said
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert len(facts["devices"]) == 1 + (torch.accelerator.device_count() if accelerator else 0)
    assert "math" in facts["devices"]["cpu"]["attention"]
    for sizes in facts["memory_gb"].values():
        assert 0 <= sizes["free"] <= sizes["total"]
    assert facts["hub"]["has_token"]
    assert "with a token" in said


def test_extras_are_those_of_the_package(monkeypatch, capsys):
    """Each with what it lacks, and the line that installs it."""
    lines = [
        "torch>=2", "numpy>=999", 'pillow>=10; extra == "pictures"', 'nowhere>=3; extra == "travel"',
        'numpy>=999; extra == "travel"', 'pytest; extra == "test"',
    ]  # fmt: skip
    monkeypatch.setattr(module, "requires", lambda name: lines)
    monkeypatch.setattr(module, "extras", lambda: ["pictures", "travel"])
    found = module.doctor()
    assert found["requirements_not_met"] == ["numpy>=999"]
    assert found["extras"] == {"pictures": [], "travel": ["nowhere>=3", "numpy>=999"]}
    said = capsys.readouterr().out
    assert 'extra travel            needs nowhere>=3, numpy>=999: pip install "dinov2_hf[travel]"' in said
    assert 'not met                 numpy>=999: pip install "numpy>=999"' in said


def test_a_container_grants_less(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("500000000\n")
    monkeypatch.setattr(module, "MEMORY_LIMIT", tmp_path / "memory.max")
    assert module.memory()["memory"] == {"total": 2.0, "free": 1.5}
    (tmp_path / "memory.max").write_text("max\n")
    assert module.memory()["memory"]["total"] > 2.0
