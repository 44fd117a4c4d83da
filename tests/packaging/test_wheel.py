"""What is installed is what is tested: sdist and wheel are built, installed outside the checkout, and used there."""

import email
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MODULES = """
import importlib, pkgutil, sys
import dinov2_hf
assert dinov2_hf.__file__.startswith(sys.prefix), dinov2_hf.__file__
names = [module.name for module in pkgutil.walk_packages(dinov2_hf.__path__, "dinov2_hf.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(*names, sep="\\n")
"""
# A pretraining that takes seconds.
TINY = (
    "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 2 --image_size 56 --patch_size 14"
    " --layerscale_value 1 --local_crop_size 28 --num_local_crops 2 --num_prototypes 32 --head_hidden_size 32"
    " --bottleneck_size 16 --max_steps 2 --warmup_steps 1 --teacher_temperature_warmup_steps 1"
    " --freeze_last_layer_steps 0 --per_device_train_batch_size 4 --dataloader_num_workers 0 --logging_steps 1"
    " --mixed_precision no"
).split()
LAUNCHED = "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with an sdist of the checkout, and a wheel that was built from nothing but that sdist."""
    folder = tmp_path_factory.mktemp("built")
    checkout = folder / "checkout"
    ignore = shutil.ignore_patterns("*.egg-info", "__pycache__", "outputs")
    for name in ("src", "examples", "tests", "docs"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, checkout)
    build = "from setuptools import build_meta; build_meta.build_{}({!r})"
    subprocess.run([sys.executable, "-c", build.format("sdist", str(folder))], cwd=checkout, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    subprocess.run([sys.executable, "-c", build.format("wheel", str(folder))], cwd=source, check=True)
    return folder


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """Runs Python in an environment that has the wheel, and of the test environment the other packages only."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "environment", with_pip=False, symlinks=True)
    executable = folder / "environment" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", executable, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    # Folders of a .pth file are searched, but .pth files in them are not read: the editable install is not seen.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    work = folder / "work"
    work.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "PYTEST"))}

    def run(*words, check: bool = True) -> str:
        done = subprocess.run(
            [executable, *map(str, words)], cwd=work, env=kept | {"OMP_NUM_THREADS": "1", "HF_HOME": str(work / "hf")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr[-3000:]
        return done.stdout

    run.work = work
    run.command = executable.with_name("dinov2-hf")
    return run


def test_every_file_of_the_package_is_in_the_wheel(built):
    (wheel,) = built.glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True, check=True)
    found = {line.split()[0] for line in listed.stdout.splitlines() if line.startswith("dinov2_hf/")}
    package = ROOT / "src" / "dinov2_hf"
    wanted = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    scripts = [path for pattern in ("*.py", "accelerate_configs/*", "slurm/*") for path in EXAMPLES.glob(pattern)]
    assert found == wanted | {f"dinov2_hf/examples/{path.relative_to(EXAMPLES).as_posix()}" for path in scripts}


def test_the_sdist_has_what_a_checkout_has(built):
    """All that its own tests and documents need."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    ignored = {"__pycache__", "outputs"}
    files = {
        path.relative_to(ROOT).as_posix()
        for room in ("src/dinov2_hf", "examples", "tests", "docs")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and not ignored & set(path.parts)
    }
    wanted = {"README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile"}
    assert files | wanted | {"setup.py", "pyproject.toml", "hubconf.py"} <= found


def test_the_wheel_says_what_it_is(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(name))
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    version = re.search(r'__version__ = "(.+)"', (ROOT / "src/dinov2_hf/__init__.py").read_text())[1]
    assert said["Version"] == version
    assert said["License"] == "Apache-2.0"
    assert "Typing :: Typed" in said.get_all("Classifier")
    assert said.get_all("Project-URL")
    assert {"demo", "curation", "evaluation", "test"} <= set(said.get_all("Provides-Extra"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (version, said["License"])


def test_every_module_can_be_imported(python):
    names = python("-c", MODULES).split()
    package = ROOT / "src" / "dinov2_hf"
    files = {path.relative_to(package.parent).with_suffix("") for path in package.rglob("*.py")}
    modules = {".".join(path.parts) for path in files if path.name != "__init__"}
    packages = {".".join(path.parent.parts) for path in files if path.name == "__init__"}
    scripts = {f"dinov2_hf.examples.{path.stem}".removesuffix(".__init__") for path in EXAMPLES.glob("*.py")}
    assert set(names) == (modules | packages | scripts) - {"dinov2_hf"}


def test_commands_work_outside_the_checkout(python):
    """From images to a pretraining, a distillation and what is done with their models, as they are typed."""
    rng = np.random.default_rng(0)
    for index in range(16):
        path = python.work / "images" / ("dark", "light")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 128, (40, 48, 3)) + 127 * (index % 2)).astype(np.uint8)).save(path)
    given = (*TINY, "--train_data", "images", "--output_dir")
    python("-m", *LAUNCHED, "-m", "dinov2_hf.examples.pretrain", "--config", "vits14_short", *given, "run")
    (python.work / "run").rename(python.work / "launched")
    python(python.command, "pretrain", "--config", "vits14_short", *given, "run")
    for name in ("recipe.yaml", "model/model.safetensors"):
        assert (python.work / "run" / name).read_bytes() == (python.work / "launched" / name).read_bytes()
    of_student = [
        word for pair in zip(TINY[::2], TINY[1::2], strict=True) if "num_prototypes" not in pair[0] for word in pair
    ]
    given = ("--teacher", "run", *of_student, "--train_data", "images", "--output_dir", "small")
    python(python.command, "distill", "--config", "vits14_distilled", *given)
    python(python.command, "convert", "run/model", "original.pth")
    python(python.command, "convert", "original.pth", "again", "--num_attention_heads", 2)
    python(python.command, "export", "again", "--format", "transformers", "--output_dir", "stock")
    python(python.command, "features", "again", "--data", "images", "--output", "features.parquet")
    python(
        python.command, "evaluate", "--model", "again", "--protocol", "knn", "--knn_ks", 1, 3,
        "--train_data", "images", "--eval_data", "images", "--eval_split", "train", "--output_dir", "evaluation",
    )  # fmt: skip
    python(python.command, "curate", "--uncurated", "images", "--output_dir", "curated")
    assert (python.work / "small" / "model" / "model.safetensors").is_file()
    assert (python.work / "stock" / "model.safetensors").is_file()
    assert (python.work / "features.parquet").is_file()
    # Each image is its own nearest neighbour, so one neighbour is always right.
    protocols = json.loads((python.work / "evaluation" / "metrics.json").read_text())["protocols"]
    assert protocols["knn"]["metrics"]["knn_top1_k1"] == 1.0
    assert (python.work / "curated" / "report.html").is_file()
