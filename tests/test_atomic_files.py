"""Files and folders appear whole or not at all, and nothing is replaced that this package did not write."""

import os
import signal
import textwrap
import time
from pathlib import Path

import pytest

from dinov2_hf import atomic_files
from dinov2_hf.atomic_files import new_file, new_folder
from dinov2_hf.output_folders import (
    MARKER,
    is_free,
    part_writer,
    read_marker,
    refuse_links,
    refuse_overlap,
    sole_writer,
    write_marker,
    write_text,
)
from tests import forked_python


def write_model(folder, text="weights", **options):
    with new_folder(folder, "model", **options) as partial:
        (partial / "config.json").write_text(text)


def tree(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_text() for path in folder.rglob("*")}


def test_folder_appears_whole_with_a_marker_and_nothing_beside_it(tmp_path):
    write_model(tmp_path / "a" / "model")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]
    assert read_marker(tmp_path / "a" / "model") == {
        "written_by": "dinov2_hf", "kind": "model", "files": ["config.json"]
    }  # fmt: skip


@pytest.mark.parametrize("can_exchange", [True, False])
def test_own_folder_is_replaced_only_with_overwrite(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)
    folder = tmp_path / "model"
    write_model(folder, "old")
    with pytest.raises(ValueError, match="exists already; .* --overwrite"):
        write_model(folder)
    write_model(folder, "new", overwrite=True)
    assert (folder / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / "config.json").write_text('{"port": 80}')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match="was not written by dinov2_hf"):
        write_model(project, overwrite=True)
    assert tree(tmp_path) == before


def test_file_that_somebody_added_is_left_alone(tmp_path):
    folder = tmp_path / "model"
    write_model(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.md").write_text("a thought")
    with pytest.raises(ValueError, match=r"holds notes/mine.md, which dinov2_hf did not write"):
        write_model(folder, overwrite=True)
    assert (folder / "notes" / "mine.md").exists()


def test_folder_of_another_kind_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    write_marker(tmp_path / "run", "run")
    with pytest.raises(ValueError, match="holds a training run, which is not replaced by a model"):
        write_model(tmp_path / "run", overwrite=True)


def test_hidden_files_of_somebody_else_beside_the_output_stay(tmp_path):
    theirs = [tmp_path / name for name in (".model.old", ".model.partial", ".model.abcdefgh.unfinished")]
    for folder in theirs:
        folder.mkdir()
        (folder / "keep").write_text("")
    write_model(tmp_path / "model")
    write_model(tmp_path / "model", overwrite=True)
    assert all((folder / "keep").exists() for folder in theirs)


def in_a_fork(work):
    """Run `work` in a copy of this process, and return how that ended: 0, or the number of the signal."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize(("module", "name"), [(os, "rename"), (atomic_files.shutil, "rmtree")])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_killed_while_it_takes_its_place(tmp_path, monkeypatch, module, name, count, can_exchange):
    """Killed before each rename or removal: a whole folder has the name, or gets it back at the next write."""
    folder = tmp_path / "model"
    write_model(folder, "old")
    calls, original = [], getattr(module, name)

    def killing(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killing)
        if not can_exchange:
            patch.setattr(atomic_files, "_exchange", lambda one, other: False)
        code = in_a_fork(lambda: write_model(folder, "new", overwrite=True))
    assert code in (0, -signal.SIGKILL)
    if can_exchange:
        assert (folder / "config.json").read_text() in ("old", "new")
    with pytest.raises(ValueError, match="exists already"):  # so what is there, or was moved away, is not lost
        write_model(folder)
    write_model(folder, "next", overwrite=True)
    assert tree(tmp_path) == {
        "model": False, "model/config.json": "next", f"model/{MARKER}": (folder / MARKER).read_text()
    }  # fmt: skip


def test_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "features.npy"
    with pytest.raises(ZeroDivisionError), new_file(path) as partial:
        partial.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())
    with new_file(path) as partial:
        partial.write_text("whole")
    with pytest.raises(ValueError, match="exists already"), new_file(path):
        pass
    with new_file(path, overwrite=True) as partial:
        partial.write_text("again")
    assert tree(tmp_path) == {"features.npy": "again"}


def test_planted_links_are_not_followed(tmp_path):
    """Names of unfinished files cannot be foreseen; a link under the name of the lock is refused."""
    secret = tmp_path / "secret"
    secret.write_text("keep")
    for name in (".model.pth.partial", ".model.pth.lock"):
        (tmp_path / name).symlink_to(secret)
    with pytest.raises(ValueError, match="cannot be written"), new_file(tmp_path / "model.pth") as partial:
        partial.write_text("weights")
    assert secret.read_text() == "keep"


def test_the_marker_is_written_through_no_planted_link(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("keep")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (MARKER, f"{MARKER}.{os.getpid()}", f".{MARKER}.{os.getpid()}"):
        (folder / name).symlink_to(secret)
    write_marker(folder, "run")
    assert secret.read_text() == "keep"
    assert read_marker(folder)["kind"] == "run"


def test_link_to_a_folder_is_followed_and_kept(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "scratch" / "model")
    with pytest.raises(ValueError, match="link to nowhere"):
        write_model(tmp_path / "model")
    (tmp_path / "scratch" / "model").mkdir()
    write_model(tmp_path / "model")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "scratch" / "model" / "config.json").read_text() == "weights"


def test_links_inside_an_output_folder_are_refused(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="checkpoints is a symbolic link"):
        refuse_links(tmp_path, ["model", "checkpoints"])


@pytest.mark.parametrize(
    ("output", "source", "relation"),
    [
        ("photos", "photos", "same as"),
        ("photos/out", "photos", "inside"),
        ("data", "data/photos", "around"),
        ("photos/out", "link", "inside"),
        ("photos/a.png", "photos/*.png", "same as"),
    ],
)
def test_overlap_is_refused(tmp_path, monkeypatch, output, source, relation):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "data" / "photos").mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    with pytest.raises(ValueError, match=relation):
        refuse_overlap(output, [source])
    refuse_overlap("elsewhere", [source, "owner/name_on_the_hub"])


def test_second_writer_is_refused(tmp_path):
    program = """
        import sys, time
        from pathlib import Path
        from dinov2_hf.atomic_files import new_folder
        folder = Path(sys.argv[1])
        with new_folder(folder / "model", "model"):
            (folder / "first").touch()
            while (folder / "first").exists():
                time.sleep(0.01)
    """
    first = forked_python.start(["-c", textwrap.dedent(program), tmp_path])
    while not (tmp_path / "first").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    with pytest.raises(ValueError, match="is being written by another process"):
        write_model(tmp_path / "model")
    (tmp_path / "first").unlink()
    assert first.wait() == 0
    write_model(tmp_path / "model", overwrite=True)


def test_lock_inside_a_folder_is_gone_afterwards(tmp_path):
    with sole_writer(tmp_path / "run"):
        with pytest.raises(ValueError, match="another process"), sole_writer(tmp_path / "run"):
            pass
    assert tree(tmp_path / "run") == {}


def test_place_that_cannot_be_is_refused_before_the_block(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be created"), new_file(tmp_path / "file" / "features.npy"):
        pytest.fail("work was begun")


def test_text_has_the_usual_permissions(tmp_path):
    write_text(tmp_path / "metrics.json", "{}")
    (tmp_path / "usual").touch()
    assert os.stat(tmp_path / "metrics.json").st_mode == os.stat(tmp_path / "usual").st_mode
    with new_file(tmp_path / "file") as partial:
        partial.touch()
    assert os.stat(tmp_path / "file").st_mode == os.stat(tmp_path / "usual").st_mode
    write_model(tmp_path / "model")
    (tmp_path / "folder").mkdir()
    assert os.stat(tmp_path / "model").st_mode == os.stat(tmp_path / "folder").st_mode
    assert MARKER in os.listdir(tmp_path / "model")


def test_parts_are_written_at_once_but_not_beside_a_sole_writer(tmp_path):
    folder = tmp_path / "curated"
    with part_writer(folder, "embed.0-of-2"), part_writer(folder, "embed.1-of-2"):
        with pytest.raises(ValueError, match="is being written by another process"), sole_writer(folder):
            pass
        with pytest.raises(ValueError, match="is being written"), part_writer(folder, "embed.1-of-2"):
            pass
        assert is_free(folder)
    assert list(folder.iterdir()) == []
    (folder / ".dinov2_hf.lock.embed.0-of-2").touch()  # of a process that was killed
    with sole_writer(folder):
        assert [path.name for path in folder.iterdir()] == [".dinov2_hf.lock"]


def test_a_part_is_refused_beside_a_sole_writer(tmp_path, monkeypatch):
    monkeypatch.setattr("dinov2_hf.output_folders.SECONDS_TO_REGISTER", 0.01)
    with sole_writer(tmp_path), pytest.raises(ValueError, match="is being written"), part_writer(tmp_path, "a"):
        pass


@pytest.mark.parametrize("url", ["s3://bucket/out", "hf://datasets/me/out", "gs://bucket"])
@pytest.mark.parametrize("open_output", [sole_writer, new_file, lambda path: new_folder(path, "model")])
def test_urls_are_no_outputs(tmp_path, monkeypatch, url, open_output):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"the output {url} is a URL, but output is only written to folders"):
        with open_output(Path(url)):
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_file_browsers_leave_belongs_to_nobody(tmp_path):
    folder = tmp_path / "model"
    with new_folder(folder, "model") as partial:
        (partial / "config.json").write_text("{}")
    (folder / ".DS_Store").touch()
    with new_folder(folder, "model", overwrite=True) as partial:
        (partial / "config.json").write_text("{}")
    assert not (folder / ".DS_Store").exists()
