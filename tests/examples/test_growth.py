"""How costs grow: exponents of known powers, and points of both ways of measuring."""

import importlib
import json
import sys

import pytest

from .conftest import EXAMPLES


TOY = (
    "--config vits14_short --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --image_size 32"
    " --patch_size 8 --local_crop_size 16 --num_local_crops 2 --num_prototypes 64 --head_hidden_size 32"
    " --bottleneck_size 16 --per_device_train_batch_size 2"
).split()


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module("growth")
    for name in set(sys.modules) - before:
        if name in ("growth", "pretraining_step", "simulated_step", "simulated_gpu"):
            del sys.modules[name]


def test_exponents_of_powers(growth):
    points = {x: {"seconds": 3.0 * x**1.5, "gib": 0.1 * x**-0.5} for x in (1, 2, 8)}
    assert growth.exponents(points) == {
        "seconds": {"all": pytest.approx(1.5), "last": pytest.approx(1.5)},
        "gib": {"all": pytest.approx(-0.5), "last": pytest.approx(-0.5)},
    }
    bent = {x: {"seconds": 1.0 + x**2, "gib": 1.0} for x in (1, 100, 200)}
    found = growth.exponents(bent)
    assert found["seconds"]["all"] < found["seconds"]["last"] == pytest.approx(2, abs=0.01)
    assert found["gib"] == {"all": pytest.approx(0), "last": 0}


def test_a_measured_point(growth):
    point = growth.measured(TOY, steps=1)
    assert point["seconds"] > 0
    assert point["gib"] >= 0  # beyond the largest that this process was before


def test_simulated_points_are_written_and_drawn(growth, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(growth.BASE, "simulated", TOY)
    sizes = {"simulated": (64, 128, 256)}
    monkeypatch.setitem(growth.AXES, "per_device_train_batch_size", ("images", sizes))
    output, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    flags = ["--axes", "per_device_train_batch_size", "--ways", "simulated"]
    monkeypatch.setattr(sys, "argv", ["growth.py", *flags, "--output", str(output), "--picture", str(picture)])
    growth.main()
    found = json.loads(output.read_text())["per_device_train_batch_size"]
    assert list(found["simulated"]["points"]) == ["64", "128", "256"]
    assert all(point["seconds"] > 0 for point in found["simulated"]["points"].values())
    # Twice the images are twice the activations, beside weights that stay.
    memory = found["simulated"]["exponents"]["gib"]
    assert 0.8 < memory["all"] < memory["last"] < 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| images | simulated | 64 | 256 |" in capsys.readouterr().out
