"""A run writes to a folder of its own: nothing of others is deleted or replaced, and nobody else writes there."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from dinov2_hf.output_folders import read_marker, sole_writer, write_marker
from tests import forked_python

from .conftest import Interrupted, forget_accelerate
from .test_pretrain import run


@pytest.fixture(scope="module")
def finished(pretrain, recipe, images, tmp_path_factory):
    """Of four steps, with checkpoints of two and four; to be copied."""
    forget_accelerate()
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(pretrain, recipe, images, folder, "--max_steps", "4")
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(path for path in folder.rglob("*") if path.name != ".dinov2_hf.lock")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def refused(pretrain, recipe, images, output_dir, *flags: str, sentence: str) -> None:
    """In one sentence, with everything beside the output as before."""
    before = tree(output_dir.parent)
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{sentence}") as stop:
        run(pretrain, recipe, images, output_dir, *flags)
    assert "\n" not in str(stop.value)
    assert tree(output_dir.parent) == before


def test_a_checkpoint_of_another_run_is_not_continued_over_a_run(pretrain, recipe, images, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a")
    shutil.copytree(finished, tmp_path / "b")
    start = str(tmp_path / "a" / "checkpoints" / "step_0000002")
    sentence = "b, which holds checkpoints, model, .*but --resume_from_checkpoint is .*of another run"
    refused(pretrain, recipe, images, tmp_path / "b", "--resume_from_checkpoint", start, sentence=sentence)
    flags = ("--resume_from_checkpoint", start, "--overwrite_output_dir")
    refused(pretrain, recipe, images, tmp_path / "b", *flags, sentence="leave out one of them")
    flags = ("--resume_from_checkpoint", start, "--max_steps", "4")
    run(pretrain, recipe, images, tmp_path / "new", *flags)
    steps = [json.loads(line)["step"] for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 4]


def test_a_finished_run_is_exported_again_in_another_folder(pretrain, recipe, images, finished, tmp_path):
    start = str(finished / "checkpoints" / "step_0000004")
    run(pretrain, recipe, images, tmp_path / "new", "--resume_from_checkpoint", start, "--max_steps", "4")
    assert json.loads((tmp_path / "new" / "metrics.json").read_text())["last_training_record"] is None
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (finished, tmp_path / "new")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["checkpoints", "model", "trackers"])
def test_a_folder_that_never_held_a_run_is_not_overwritten(pretrain, recipe, images, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "weights.pt").write_text("of somebody else")
    sentence = f"out, which holds {name}, but no run of dinov2_hf wrote that"
    refused(pretrain, recipe, images, tmp_path / "out", "--overwrite_output_dir", sentence=sentence)
    refused(pretrain, recipe, images, tmp_path / "out", sentence=sentence)


def test_overwriting_deletes_only_what_a_run_wrote(pretrain, recipe, images, finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    mine = (
        "notes.txt",
        "checkpoints/step_0000099/weights.pt",
        "checkpoints/best.pt",
        ".model.old",
        "trackers/log.txt",
    )
    mine += (".model.partial/weights.pt", "students/mine/data.npy")
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    run(pretrain, recipe, images, out, "--overwrite_output_dir", "--max_steps", "2")
    assert all((out / name).read_text() == "mine" for name in mine)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["best.pt", "step_0000002", "step_0000099"]
    assert read_marker(out)["kind"] == "run"
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["model/notes.md", "checkpoints/step_0000004/notes.md"])
@pytest.mark.parametrize("flags", [("--overwrite_output_dir",), ("--resume_from_checkpoint", "latest")])
def test_a_file_added_to_what_would_be_replaced_is_named(pretrain, recipe, images, finished, tmp_path, name, flags):
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / name).write_text("mine")
    sentence = "holds notes.md, which dinov2_hf did not write"
    refused(pretrain, recipe, images, tmp_path / "out", *flags, sentence=sentence)


@pytest.mark.parametrize(
    ("output", "flags"),
    [
        ("data", ()),
        ("data/out", ()),
        (".", ()),
        ("eval/out", ("--eval_data", "{tmp}/eval")),
        ("bank", ("--eval_data", "{tmp}/eval", "--eval_bank_data", "{tmp}/bank")),
        ("start/model/out", ("--init_from", "{tmp}/start/model")),
    ],
)
def test_an_output_that_is_a_source_is_refused(pretrain, recipe, images, finished, tmp_path, output, flags):
    for name in ("data", "eval", "bank"):
        shutil.copytree(images, tmp_path / "w" / name)
    shutil.copytree(finished, tmp_path / "w" / "start")
    flags = [flag.format(tmp=tmp_path / "w") for flag in flags]
    before = tree(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: the output .* (is the same as|is inside|is around) the source"):
        run(pretrain, recipe, tmp_path / "w" / "data", tmp_path / "w" / output, *flags)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["checkpoints", "model", "metrics.jsonl"])
def test_links_inside_are_refused(pretrain, recipe, images, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    refused(pretrain, recipe, images, tmp_path / "out", sentence=f"{name} is a symbolic link")


def test_an_address_is_refused(pretrain, recipe, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^error: the output s3://bucket/run is a URL"):
        run(pretrain, recipe, images, "s3://bucket/run")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_itself_may_be_a_link(pretrain, recipe, images, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    run(pretrain, recipe, images, tmp_path / "out", "--max_steps", "2")
    assert (tmp_path / "disk" / "model" / "config.json").is_file()


def test_what_a_kill_left_between_two_renames_goes_back(pretrain, recipe, images, finished, tmp_path):
    """On a disk where two names cannot be exchanged in one step, the earlier checkpoint is in the hidden folder."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    hidden = out / "checkpoints" / ".step_0000004.abcd1234.unfinished"
    hidden.mkdir()
    write_marker(hidden, "unfinished")
    (out / "checkpoints" / "step_0000004").rename(hidden / "step_0000004.replaced")
    run(pretrain, recipe, images, out, "--resume_from_checkpoint", "latest", "--max_steps", "4")
    assert tree(out / "checkpoints") == tree(finished / "checkpoints")


def test_a_locked_folder_is_refused(pretrain, recipe, images, tmp_path):
    with sole_writer(tmp_path / "out"):
        with pytest.raises(SystemExit, match="^error: .*out is being written by another process"):
            run(pretrain, recipe, images, tmp_path / "out")


def test_a_second_launch_is_refused_on_all_processes_until_the_first_is_killed(
    pretrain, recipe, images, tmp_path, free_port
):
    """The first with workers, which outlive a kill for some seconds; the second of two processes."""
    out = tmp_path / "out"
    flags = ["--config", recipe, "--train_data", str(images), "--output_dir", str(out), "--eval_steps", "5000"]
    flags += ["--save_steps", "2", "--save_total_limit", "100"]
    first = [pretrain.__file__, *flags, "--max_steps", "5000", "--dataloader_num_workers", "1"]
    process = forked_python.start(first)
    try:
        while process.poll() is None and not (out / "checkpoints" / "step_0000002").exists():
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        second = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
        second += [str(free_port), pretrain.__file__, *flags, "--resume_from_checkpoint", "latest"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        refused = forked_python.run(second, env=environment)
        assert refused.returncode == 1
        assert refused.stderr.count("out is being written by another process; wait until") == 2
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    flags = ["--resume_from_checkpoint", "latest", "--max_steps", "5000", "--eval_steps", "1000"]
    with pytest.raises(Interrupted):
        run_until_interrupted(pretrain, recipe, images, out, *flags)


def run_until_interrupted(pretrain, recipe, images, out, *flags: str) -> None:
    def stop(*_):
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "train", stop)
        run(pretrain, recipe, images, out, *flags)


def test_ctrl_c_before_the_first_step(pretrain, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "PreTrainingPlan", interrupted)
    with pytest.raises(SystemExit) as stop:
        pretrain.main([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nstopped: Ctrl-C ended the run.\n"


def test_ctrl_c_is_one_line_and_130(pretrain, recipe, images, tmp_path):
    """To the whole group of processes, workers included, as a terminal sends it."""
    flags = ["--config", recipe, "--train_data", str(images), "--output_dir", str(tmp_path / "out")]
    flags += ["--max_steps", "5000", "--save_steps", "2", "--eval_steps", "5000", "--dataloader_num_workers", "1"]
    process = forked_python.start([pretrain.__file__, *flags])
    while process.poll() is None and not (tmp_path / "out" / "checkpoints" / "step_0000002").exists():
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGINT)
    printed = process.communicate(timeout=120)[1]
    assert process.returncode == 130, printed
    assert "Traceback" not in printed
    (sentence,) = (line for line in printed.splitlines() if "stopped: " in line)
    assert printed.splitlines()[-1] == sentence  # and no bar below it
    assert sentence.startswith("stopped: Ctrl-C ended the run; steps since the last checkpoint are lost. --resume")
