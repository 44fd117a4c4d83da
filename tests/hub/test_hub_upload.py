"""Runs of the training script, and folders, on their way to the Hub: what arrives, what is refused, what is kept."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load
from transformers import AutoModel, AutoModelForPreTraining

import dinov2_hf.cli
from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.output_folders import MARKER
from dinov2_hf.runs.ending.hub_upload import push_folder
from tests.examples.conftest import EXAMPLES, forget_accelerate, load_example


MODEL_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
RUN_FILES = {"training_curves.png", "patch_pca.png", "metrics.json"}
PRETRAINING_FILES = {f"pretraining_model/{name}" for name in MODEL_FILES - {"README.md"}}


# --- what runs at the user's: functions that the client process calls by name


def pretrain(flags: list[str]) -> tuple[str, str | int | None]:
    """What a run printed, and what it exited with."""
    forget_accelerate()
    return printed_and_exit(load_example("pretrain").main, flags)


def command_line(arguments: list[str]) -> tuple[str, str | int | None]:
    """The same of `dinov2-hf`."""
    return printed_and_exit(dinov2_hf.cli.main, arguments)


def printed_and_exit(main: Callable, arguments: list[str]) -> tuple[str, str | int | None]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main(arguments)
        except SystemExit as stop:
            return printed.getvalue(), stop.code
    return printed.getvalue(), None


def push(folder: Path, repo_id: str, options: dict) -> str:
    """The address, or the complaint."""
    try:
        return push_folder(folder, repo_id, **options)
    except ValueError as error:
        return str(error)


def run_card_examples(text: str, folder: Path) -> dict:
    """Run the Python of a card in `folder`; class names and shapes of what it made."""
    made, start = {}, Path.cwd()
    os.chdir(folder)
    try:
        for code in re.findall(r"```python\n(.+?)```", text, re.DOTALL):
            exec(code, made)
            made.setdefault("backbone", made["model"])
    finally:
        os.chdir(start)
    return {
        "features": tuple(made["features"].shape),
        "backbone": type(made["backbone"]).__name__,
        "model": type(made["model"]).__name__,
    }


def loads_like(folder: Path, repo_id: str, revision: str) -> bool:
    """Whether backbone and pretraining model on the Hub are those of a run's folder."""
    pairs = [
        (AutoModel.from_pretrained(repo_id, revision=revision), AutoModel.from_pretrained(folder / "model")),
        (
            AutoModelForPreTraining.from_pretrained(repo_id, revision=revision, subfolder="pretraining_model"),
            AutoModelForPreTraining.from_pretrained(folder / "pretraining_model"),
        ),
    ]
    return all(
        torch.equal(value, there.state_dict()[name])
        for there, here in pairs
        for name, value in here.state_dict().items()
    )


# --- runs of the training script


@pytest.fixture
def flags(recipe, images, tmp_path) -> list[str]:
    data = ["--config", recipe, "--train_data", str(images), "--output_dir", str(tmp_path / "my_run")]
    return [*data, "--max_steps", "2", "--push_to_hub"]


def test_a_run_goes_to_the_hub(hub, client, flags, images, tmp_path):
    flags += ["--eval_data", str(images), "--eval_split", "train", "--hub_model_id", "ada/tiny", "--license", "mit"]
    flags += ["--hub_private_repo", "true", "--hub_revision", "second", "--hub_pretraining_model"]
    flags += ["--hub_token", "hf_writer"]
    printed, complaint = client(pretrain, flags)
    assert complaint is None
    assert printed.endswith(f"uploaded to {hub.url}/ada/tiny/tree/second\n")
    files = hub.files("ada/tiny", "second")
    assert set(files) == MODEL_FILES | RUN_FILES | PRETRAINING_FILES
    assert hub.files("ada/tiny") == {}
    assert hub.repos["ada/tiny"].private
    assert hub.repos["ada/tiny"].commits == ["Upload model"]
    assert client(loads_like, tmp_path / "my_run", "ada/tiny", "second")

    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    assert {result.dataset_name for result in card.data.eval_results} == {images.name}
    assert "max_steps: 2" in card.text
    assert "](patch_pca.png)" in card.text
    Image.new("RGB", (30, 20)).save(tmp_path / "image.jpg")
    made = client(run_card_examples, card.text, tmp_path)
    assert made == {"features": (1, 17, 32), "backbone": "DINOv2Model", "model": "DINOv2ForPreTraining"}

    # On this side, the card's examples load the folder, and nothing knows the token or repeats the upload.
    local = (tmp_path / "my_run" / "model" / "README.md").read_text()
    assert 'from_pretrained(".")' in local
    assert "ada/tiny" not in local
    assert "hub" not in (tmp_path / "my_run" / "recipe.yaml").read_text()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [content for content in [*written, *files.values(), printed.encode()] if b"hf_writer" in content]


def test_the_name_of_the_folder_is_the_default(hub, client, flags):
    printed, complaint = client(pretrain, flags)
    assert complaint is None
    assert printed.endswith(f"uploaded to {hub.url}/ada/my_run\n")
    assert set(hub.files("ada/my_run")) == MODEL_FILES | RUN_FILES
    assert not hub.repos["ada/my_run"].private


MISTAKES = {
    "unknown token": (["--hub_token", "hf_nobody"], "does not accept the token"),
    "token that reads": (["--hub_token", "hf_reader"], "may not write"),
    "token with a line break": (["--hub_token", "hf_writer\n"], "line break"),
    "somebody else's name": (["--hub_model_id", "bob/tiny"], "bob/tiny.*may not write"),
    "no name": (["--hub_model_id", "ada/tiny/model"], "ada/tiny/model cannot be prepared.*repo_name"),
    "already public": (
        ["--hub_model_id", "ada/public", "--hub_private_repo", "true"],
        "exists and is public",
    ),
    "token that reads what exists": (["--hub_model_id", "ada/public", "--hub_token", "hf_reader"], "may not write"),
    "licence": (["--license", "apache2"], '"license" must be one of apache-2.0'),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_before_training(hub, client, flags, tmp_path, mistake, message):
    if "ada/public" in mistake:
        saved = tmp_path / "saved"
        DINOv2Config().save_pretrained(saved)
        assert client(push, saved, "ada/public", {}).startswith("http")
    printed, complaint = client(pretrain, [*flags, *mistake])
    assert re.search(f"^error: .*{message}", complaint)
    assert "\n" not in complaint
    assert "hf_" not in complaint + printed
    assert not (tmp_path / "my_run").exists()


def test_another_mistake_makes_no_repository(hub, client, flags):
    _, complaint = client(pretrain, [*flags, "--warmup_steps", "7"])
    assert "`warmup_steps` is 7" in complaint
    assert hub.requests == []


def test_a_failed_upload_does_not_lose_the_run(hub, client, flags, environment, tmp_path):
    hub.failures["/commit/"] = 500
    command = [sys.executable, str(EXAMPLES / "pretrain.py"), *flags, "--hub_revision", "second"]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    complaint = finished.stderr.splitlines()[-1]
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
    assert "hf_writer" not in finished.stderr + finished.stdout
    run = tmp_path / "my_run"
    assert complaint.startswith(f"error: the upload of {run} to ada/my_run failed: ")
    assert "500" in complaint
    assert f"its model is in {run / 'model'}," in complaint
    assert AutoModel.from_pretrained(run / "model").config.hidden_size == 32
    assert {path.name for path in run.iterdir()} >= {*RUN_FILES, "model", "pretraining_model", "checkpoints"}
    assert hub.files("ada/my_run", "second") == {}

    program, *again = shlex.split(complaint.partition("uploads it again: ")[2])
    assert program == "dinov2-hf"
    assert client(command_line, again)[1].startswith("error: the upload of")
    hub.failures.clear()
    assert client(command_line, again) == (f"{hub.url}/ada/my_run/tree/second\n", None)
    assert set(hub.files("ada/my_run", "second")) == MODEL_FILES | RUN_FILES

    # The other way: a run that has nothing left to do, continued.
    printed, complaint = client(pretrain, [*flags, "--resume_from_checkpoint", "latest"])
    assert complaint is None
    assert set(hub.files("ada/my_run")) == MODEL_FILES | RUN_FILES


REFUSED_AND_THEN_NOT = """
import sys
from tests.examples.conftest import forget_accelerate, load_example
pretrain = load_example("pretrain")
try:
    pretrain.main([*sys.argv[1:], "--hub_token", "hf_reader"])
except SystemExit as stop:
    print(stop.code)
forget_accelerate()
pretrain.main(sys.argv[1:])
"""


def test_of_two_processes_both_stop_and_one_uploads(hub, flags, environment, free_port, tmp_path):
    (tmp_path / "script.py").write_text(REFUSED_AND_THEN_NOT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port)]
    path = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    finished = subprocess.run(
        [*command, str(tmp_path / "script.py"), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path},
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("error: the repository my_run cannot be prepared") == 2
    assert finished.stdout.count("uploaded to") == 1
    assert hub.repos["ada/my_run"].commits == ["Upload model"]
    assert hub.requests.count("POST /api/repos/create") == 3  # refused, at the start, at the end: by one process


# --- folders


@pytest.fixture
def model_folder(tmp_path) -> Path:
    config = DINOv2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    DINOv2Model(config).save_pretrained(tmp_path / "model_folder")
    return tmp_path / "model_folder"


def test_a_model_folder(hub, client, model_folder):
    (model_folder / ".cache").mkdir()
    (model_folder / ".cache" / "left").write_text("by a download")
    assert client(push, model_folder, "vits", {"commit_message": "Mine"}) == f"{hub.url}/ada/vits"
    assert set(hub.files("ada/vits")) == {"config.json", "model.safetensors"}
    assert hub.repos["ada/vits"].commits == ["Mine"]


def test_what_marks_a_folder_as_ours_stays_here(hub, client, model_folder, tmp_path):
    """A converted folder, whose card then loads from the repository."""
    client(command_line, ["convert", str(model_folder), str(tmp_path / "x.pth")])
    client(command_line, ["convert", str(tmp_path / "x.pth"), str(tmp_path / "converted")])
    assert (tmp_path / "converted" / MARKER).is_file()
    client(push, tmp_path / "converted", "ada/converted", {})
    files = hub.files("ada/converted")
    assert set(files) == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert b'model="ada/converted"' in files["README.md"]


def test_weights_of_an_earlier_upload_do_not_stay(hub, client, model_folder, tmp_path):
    """Else from_pretrained would go on to load the earlier, whole file instead of the shards."""
    client(push, model_folder, "ada/vits", {})
    hub.repos["ada/vits"].branches["main"] |= {"notes.md": b"mine", "onnx/model.safetensors": b"another"}
    model = DINOv2Model.from_pretrained(model_folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    client(push, tmp_path / "shards", "ada/vits", {})
    files = hub.files("ada/vits")
    assert "model.safetensors" not in files
    assert {"model.safetensors.index.json", "notes.md", "onnx/model.safetensors"} < set(files)
    client(push, model_folder, "ada/vits", {})
    assert set(hub.files("ada/vits")) == {"config.json", "model.safetensors", "notes.md", "onnx/model.safetensors"}
    weights = load(hub.files("ada/vits")["model.safetensors"])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_what_is_no_model_is_refused_before_the_hub_is_asked(hub, client, model_folder, tmp_path):
    assert "so it is not a model folder" in client(push, tmp_path, "ada/vits", {})
    assert "is not a folder on this machine" in client(push, "ada/model", "ada/vits", {})
    (tmp_path / "config.json").write_text('{"port": 80}')
    assert "its config.json has no `model_type`" in client(push, tmp_path, "ada/vits", {})
    assert "holds no folder of that name" in client(push, model_folder, "ada/vits", {"pretraining_model": True})
    assert hub.requests == []


def test_offline(hub, offline_client, model_folder):
    assert "HF_HUB_OFFLINE is set" in offline_client(push, model_folder, "ada/vits", {})
