"""The suite for a GPU: at toy size every part ends with numbers, and none takes the others down."""

import importlib
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from datasets import Dataset, Image

from tests.data.conftest import encode, noise_image

from .conftest import EXAMPLES


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    before = set(sys.modules)
    yield importlib.import_module("gpu_suite")
    for name in set(sys.modules) - before:  # neighbours that other benchmarks import by their bare names
        if name.partition(".")[0] in ("gpu_suite", "gpu_parts"):
            del sys.modules[name]


@pytest.fixture
def run(suite, monkeypatch, tmp_path):
    """Runs the suite; what is in its `results.json`."""

    def run(*flags: str) -> dict:
        output = tmp_path / "results"
        monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--toy", "--output", str(output), *flags])
        suite.main()
        return json.loads((output / "results.json").read_text())

    return run


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    """Twenty images for training, ten to classify."""
    folder = tmp_path_factory.mktemp("cifar10")
    for name, count in (("train", 20), ("test", 10)):
        files = [{"bytes": encode(noise_image(seed, 32, 32)), "path": None} for seed in range(count)]
        rows = Dataset.from_dict({"image": files, "label": [seed % 2 for seed in range(count)]})
        rows.cast_column("image", Image()).to_parquet(folder / f"{name}.parquet")
    return folder


def test_every_part_ends_with_numbers(cifar10, tmp_path):
    """As a command: a process that has made a backward pass cannot be forked for another."""
    script, output = EXAMPLES / "benchmarks" / "gpu_suite.py", tmp_path / "results"
    flags = ["--toy", "--minutes", "60", "--cifar10", str(cifar10), "--output", str(output)]
    subprocess.run([sys.executable, str(script), *flags], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((output / "results.json").read_text())
    assert {name: part["outcome"] for name, part in results.items()} == dict.fromkeys(results, "done")
    rows = {name: part["rows"] for name, part in results.items()}
    assert list(rows) == ["machine", "tests", "steps", "loaders", "training", "inference", "searches"]
    assert torch.__version__.startswith(rows["machine"]["machine"]["torch"])
    assert {row["outcome"] for row in rows["tests"].values()} <= {"passed", "skipped"}
    assert any("test_step.py::test_the_host_waits_for_nothing" in name for name in rows["tests"])
    for variant in ("ours, eager", "ours, blocks compiled", "ours, step compiled"):
        step = rows["steps"][f"ViT-S/14, {variant}"]
        assert step["images_per_second"] == pytest.approx(4 / step["seconds_per_step"]["median"])
        flops = step["teraflops_per_step"] / step["seconds_per_step"]["median"]
        assert step["share_of_peak"] == pytest.approx(flops / 790)
        assert len(step["kernels"]["longest"]) == 12
    assert rows["steps"]["ViT-S/14, original"] == {"skipped": "no clone was named by `--original`"}
    assert list(rows["loaders"]) == [
        *["multi_crop, ViT-S/14 is trained", "device, ViT-S/14 is trained", "multi_crop, alone", "device, alone"]
    ]
    assert all(row["images_per_second"] > 0 for row in rows["loaders"].values())
    accuracies = {name: row["knn_top1_k10"] for name, row in rows["training"].items() if name.startswith("step")}
    assert list(accuracies) == ["step 0", "step 2", "step 4"]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies.values())
    assert rows["inference"]["small, 28 px, batch 1"]["speed_of_ours_over"]["transformers"] > 0
    pictures = sorted(path.stem for path in output.glob("*.png"))
    assert pictures == ["inference", "loaders", "searches", "steps", "training"]


def test_a_part_that_fails_dies_or_hangs_takes_no_other_down(suite, run, monkeypatch, tmp_path):
    def fails(work):
        work.record("first", {"value": 1})
        raise ValueError("as planted")

    def dies(work):
        work.record("first", {"value": 1})
        os._exit(9)

    def hangs(work):
        work.record("first", {"value": 1})
        work.record("first", {"second": 2})
        time.sleep(600)

    def works(work):
        assert work.deadline > time.time()
        work.record("first", {"value": 1})

    parts = [suite.Part(function.__name__, 1, (), function) for function in (fails, dies, hangs, works)]
    parts.insert(3, suite.Part("lacks", 1, ("no-such-package",), works))
    monkeypatch.setattr(suite, "PARTS", parts)
    results = run("--minutes", "0.1")
    assert {name: part["outcome"] for name, part in results.items()} == {
        "fails": "failed: ValueError: as planted",
        "dies": "failed: its process ended with 9",
        "hangs": "stopped, its time was over",
        "lacks": "not measured: no-such-package not installed",
        "works": "done",
    }
    found = {name: part["rows"] for name, part in results.items()}
    assert found == {
        **dict.fromkeys(("fails", "dies", "works"), {"first": {"value": 1}}),
        "hangs": {"first": {"value": 1, "second": 2}},
        "lacks": {},
    }
    assert "ValueError: as planted" in (tmp_path / "results" / "log.txt").read_text()


def test_what_an_image_lacks(suite, monkeypatch, tmp_path, capsys):
    """With what a package needs in turn, and without what is there under another spelling."""
    there = [name for name in suite.installed_here() if name not in ("datasets", "dill", "multiprocess", "timm")]
    image = tmp_path / "freeze.txt"
    image.write_text("\n".join(f"{name.replace('-', '_')}==1.0" for name in there))
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--image_packages", str(image)])
    suite.main()
    lines = capsys.readouterr().out.splitlines()
    assert "the package needs datasets, dill, multiprocess" in lines
    assert "the part inference measures more with timm" in lines
    (command,) = [line for line in lines if line.startswith("To carry: ")]
    assert set(command.partition("--dest wheels ")[2].split()) >= {"datasets", "dill", "multiprocess", "timm"}
    assert not {"torch", "faiss-cpu"} & set(command.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "`--output` is missing"),
        (["--output", "full"], "where something is already"),
        (["--output", "new", "--cifar10", "nowhere"], "there is no nowhere/train.parquet"),
        (["--output", "new", "--parts", "steps"], "there is no GPU here"),
    ],
)
def test_mistakes_are_named_before_anything_is_done(suite, monkeypatch, tmp_path, capsys, flags, message):
    if "no GPU" in message and torch.cuda.is_available():
        pytest.skip("there is one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs").write_text("kept")
    monkeypatch.chdir(tmp_path)
    toy = [] if "no GPU" in message else ["--toy"]
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *toy, *flags])
    with pytest.raises(SystemExit):
        suite.main()
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "theirs"]
