"""Every command that writes a model: whole or not at all, one writer, and nothing replaced that is not ours."""

import json
import subprocess

import pytest
import torch

from dinov2_hf import DINOv2Model
from dinov2_hf.cli import main
from dinov2_hf.conversion.exports import graph as exported_graph
from dinov2_hf.conversion.exports import remote_code, stock_transformers
from dinov2_hf.conversion.original import from_original, to_original
from dinov2_hf.conversion.original.to_original import convert_to_original
from dinov2_hf.output_folders import MARKER, read_marker
from tests import forked_python

from .model_folders import write_model


FORMATS = ("transformers", "dual", "onnx", "torch-export")
# A width of 512 makes the weights larger than the small disk below.
LARGE = {"hidden_size": 512, "num_attention_heads": 8}


def words(command, source, output):
    """The command line that writes `output`: to a folder by each format of `export` or by `convert`, or to a file."""
    if command in FORMATS:
        size = ["--image_size", "28"] if command in ("onnx", "torch-export") else []
        return ["export", str(source), "--format", command, "--output_dir", str(output), *size]
    return ["convert", str(source), str(output), *(["--num_attention_heads", "2"] if command == "convert" else [])]


COMMANDS = [*FORMATS, "convert", "convert back"]


@pytest.fixture
def source(request, tmp_path):
    """What a command reads: the folder of a model, or a file of the original for `convert`."""

    def make(command, **fields):
        write_model(DINOv2Model, tmp_path / "source", **fields)
        if command != "convert":
            return tmp_path / "source"
        return convert_to_original(tmp_path / "source", tmp_path / "source.pth").path

    return make


def tree(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def refused(command_line, capsys=None):
    with pytest.raises(SystemExit) as stop:
        main(command_line)
    assert str(stop.value.code).startswith("error: ")
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("command", [*FORMATS, "convert"])
def test_a_folder_of_somebody_else_stays(tmp_path, source, command):
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (project / "config.json").write_text('{"port": 80}')
    path = source(command)
    before = tree(tmp_path)
    assert "was not written by dinov2_hf" in refused([*words(command, path, project), "--overwrite"])
    assert "exists already" in refused(words(command, path, project))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_written_whole_with_a_marker_and_replaced_only_when_asked(tmp_path, source, command):
    path, output = source(command), tmp_path / ("new.pth" if command == "convert back" else "new")
    hidden = [tmp_path / f".{output.name}{suffix}" for suffix in (".old", ".partial")]
    for folder in hidden:
        folder.mkdir()
        (folder / "mine").write_text("keep")
    before = set(tmp_path.iterdir())
    main(words(command, path, output))
    assert set(tmp_path.iterdir()) == before | {output}
    if output.is_dir():
        marker = read_marker(output)
        assert marker["kind"] == "model"
        written = {name for name in tree(output) if (output / name).is_file()} - {MARKER}
        assert set(marker["files"]) == written >= {"README.md", "config.json"}
    assert "exists already" in refused(words(command, path, output))
    main([*words(command, path, output), "--overwrite"])
    assert set(tmp_path.iterdir()) == before | {output}
    if output.is_dir():
        (output / "notes.txt").write_text("mine")
        assert "holds notes.txt, which dinov2_hf did not write" in refused(
            [*words(command, path, output), "--overwrite"]
        )
        assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_source_stays(tmp_path, source, command):
    path = source(command)
    before = tree(tmp_path)
    name = "x.pth" if command == "convert back" else "x"
    places = [path / name] if path.is_dir() else []
    if command != "convert back":
        places.append(path.parent)
    if command in FORMATS:
        places.append(path)
    for place in places:
        assert "the source" in refused([*words(command, path, place), "--overwrite"])
        assert tree(tmp_path) == before


def test_a_file_in_its_own_destination_stays(tmp_path, source):
    """`convert X/g.pth X --overwrite`, where X was written by this package."""
    folder = tmp_path / "source"
    path = source("convert").rename(folder / "g.pth")
    assert "is around the source" in refused(["convert", str(path), str(folder), "--overwrite"])
    assert path.is_file()
    backbone = convert_to_original(folder, tmp_path / "b.pth").path
    assert "is the same as the source" in refused(
        ["convert", str(backbone), str(folder), "--overwrite", "--backbone", str(folder)]
    )


def test_names_of_the_other_kind(tmp_path, source):
    path = source("convert")
    assert "does not end in .pth" in refused(["convert", str(tmp_path / "source"), str(tmp_path / "thesis.docx")])
    assert "is the name of a file" in refused(["convert", str(path), str(tmp_path / "new.pth")])


@pytest.mark.parametrize("command", COMMANDS)
def test_planted_links_are_not_followed(tmp_path, source, command):
    path, output = source(command), tmp_path / ("o.pth" if command == "convert back" else "o")
    secret = tmp_path / "secret"
    secret.write_text("keep")
    for suffix in (".partial", ".old"):
        (tmp_path / f".{output.name}{suffix}").symlink_to(secret)
    main(words(command, path, output))
    assert secret.read_text() == "keep"
    output.unlink() if output.is_file() else output.rename(tmp_path / "moved")
    (tmp_path / f".{output.name}.lock").symlink_to(secret)
    assert "cannot be written" in refused(words(command, path, output))
    assert secret.read_text() == "keep"


LOADS = {
    "transformers": (stock_transformers, "load_model_folder"),
    "dual": (remote_code, "load_model_folder"),
    "onnx": (exported_graph, "load_model_folder"),
    "torch-export": (exported_graph, "load_model_folder"),
    "convert": (from_original, "read_models"),
    "convert back": (to_original, "load_model_folder"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_two_writers_of_one_name(tmp_path, source, command, monkeypatch):
    """The second is refused while the first works, from its first step on, and the first ends well."""
    path, output = source(command), tmp_path / ("new.pth" if command == "convert back" else "new")
    module, name = LOADS[command]
    original, answers = getattr(module, name), []

    def second(*args, **kwargs):
        monkeypatch.setattr(module, name, original)
        done = forked_python.run(["-m", "dinov2_hf.cli", *words(command, path, output)])
        answers.append((done.returncode, done.stderr))
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, second)
    main(words(command, path, output))
    ((code, said),) = answers
    assert code == 1
    assert "is being written by another process" in said
    assert output.exists()
    if output.is_dir():
        assert (output / "config.json").is_file()


SMALL_DISK_BYTES = 12 * 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 12 MB."""
    place = tmp_path / "small_disk"
    place.mkdir()
    options = f"size={SMALL_DISK_BYTES}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_sentence(source, small_disk, command):
    """In another process, since torch's writer can end the whole of it."""
    path, output = source(command, **LARGE), small_disk / ("new.pth" if command == "convert back" else "new")
    done = forked_python.run(["-m", "dinov2_hf.cli", *words(command, path, output)])
    last_line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1, done.stderr[-2000:]
    assert last_line.startswith(f"error: {output} could not be written, as the disk is full")
    assert "Traceback" not in done.stderr
    assert not list(small_disk.iterdir())


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


WRITES = {
    "transformers": (stock_transformers, "save_torch_state_dict"),
    "dual": (remote_code, "code_files"),
    "onnx": (exported_graph, "write_onnx"),
    "torch-export": (torch.export, "save"),
    "convert": (DINOv2Model, "save_pretrained"),
    "convert back": (torch, "save"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_leaves_the_earlier_output(tmp_path, source, command, monkeypatch):
    path, output = source(command), tmp_path / ("new.pth" if command == "convert back" else "new")
    main(words(command, path, output))
    before = tree(tmp_path)
    monkeypatch.setattr(*WRITES[command], full_disk)
    said = refused([*words(command, path, output), "--overwrite"])
    assert "could not be written, as the disk is full" in said
    assert "what was there before is unchanged" in said
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", [*FORMATS, "convert back"])
def test_a_run_may_be_named(tmp_path, source, command):
    """The output folder of a run means its model; its other folders are named as what they are."""
    run = tmp_path / "run"
    run.mkdir()
    source(command).rename(run / "model")
    (run / "pretraining_model").mkdir()
    (run / "pretraining_model" / "config.json").write_text(json.dumps({"model_type": "dinov2_hf_pretraining"}))
    (run / "checkpoints").mkdir()
    (run / "recipe.yaml").write_text("")
    output = tmp_path / ("new.pth" if command == "convert back" else "new")
    assert f"name the model of that run, {run / 'model'}" in refused(words(command, run / "checkpoints", output))
    if command != "convert back":
        said = refused(words(command, run / "pretraining_model", output))
        assert f"to continue a training from; name {run / 'model'}" in said
    assert not output.exists()
    main(words(command, run, output))
    assert output.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_to_a_url(source, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="the output s3://bucket/out.* is a URL"):
        main(words(command, source(command), "s3://bucket/out" + (".pth" if command == "convert back" else "")))
    assert not (tmp_path / "s3:").exists()
