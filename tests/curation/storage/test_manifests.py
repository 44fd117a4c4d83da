"""Shards that are there whole or not at all, and what a rerun makes again."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from dinov2_hf import atomic_files
from dinov2_hf.curation.changed_stages import remove_changed
from dinov2_hf.curation.executors import PlannedStage, run_stage, start_pool
from dinov2_hf.curation.storage.manifests import StageFolder, checksum, shard_range


def write_numbers(start: int, shard) -> None:
    np.save(shard.folder / "numbers.npy", start + np.arange(shard.rank, 20, shard.num_shards))
    shard.rows = len(range(shard.rank, 20, shard.num_shards))


def kill_at_two(shard) -> None:
    np.save(shard.folder / "numbers.npy", np.arange(shard.rank))
    if shard.rank == 2:
        raise KeyboardInterrupt


def fill_the_disk(shard) -> None:
    (shard.folder / "half.npy").write_bytes(b"1234")
    if shard.rank == 1:
        raise OSError(errno.ENOSPC, "No space left on device")


def write_beyond_the_limit(shard) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        np.save(shard.folder / "numbers.npy", np.zeros(10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def be_killed(shard) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Numbers:
    """Counts its calls; picklable."""

    def __init__(self, start: int = 0):
        self.start, self.ranks = start, []

    def __call__(self, shard):
        self.ranks.append(shard.rank)
        write_numbers(self.start, shard)


def stage(tmp_path, write, name="numbers", num_shards=4, needs=(), **config) -> PlannedStage:
    return PlannedStage(StageFolder(tmp_path / "out" / "stages" / name, num_shards, config), write, needs)


def test_a_rerun_runs_only_what_is_missing(tmp_path):
    write = Numbers()
    one = stage(tmp_path, write)
    assert run_stage(one) == 4
    assert run_stage(one) == 0
    assert write.ranks == [0, 1, 2, 3]
    assert one.folder.rows() == 20
    (one.folder.shard(2) / "numbers.npy").unlink()
    (one.folder.shard(3) / "numbers.npy").write_bytes(b"cut")
    assert one.folder.missing() == [2, 3]
    assert run_stage(one) == 2
    found = np.sort(np.concatenate([np.load(path) for path in one.folder.files("numbers.npy")]))
    assert np.array_equal(found, np.arange(20))


def test_a_checksum_finds_what_a_size_does_not(tmp_path):
    one = stage(tmp_path, Numbers())
    run_stage(one)
    path = one.folder.shard(1) / "numbers.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert one.folder.missing() == []
    assert one.folder.missing(verify=True) == [1]
    assert run_stage(one, verify=True) == 1
    manifest = json.loads((one.folder.shard(1) / "manifest.json").read_text())
    assert manifest["rows"] == 5
    assert manifest["files"]["numbers.npy"]["checksum"] == checksum(path)


def test_a_killed_stage_leaves_nothing_half_done(tmp_path):
    one = stage(tmp_path, kill_at_two)
    with pytest.raises(KeyboardInterrupt):
        run_stage(one)
    assert one.folder.missing() == [2, 3]
    assert sorted(path.name for path in one.folder.path.iterdir()) == [
        "shard-00000-of-00004", "shard-00001-of-00004", "stage.json",
    ]  # fmt: skip
    torn = one.folder.path / ".shard-00002-of-00004.abc"
    torn.mkdir()  # what a process that could not even tidy up leaves
    write = Numbers()
    assert run_stage(stage(tmp_path, write)) == 2
    assert write.ranks == [2, 3]
    assert not torn.exists()


def test_a_full_disk_is_a_sentence_and_keeps_what_is_finished(tmp_path):
    one = stage(tmp_path, fill_the_disk)
    with pytest.raises(ValueError, match=r"is full; stage 'numbers' has 1 of 4 shards, which are kept: make room"):
        run_stage(one)
    assert one.folder.missing() == [1, 2, 3]


def test_a_file_that_is_cut_short_by_a_full_disk_is_known(tmp_path, monkeypatch):
    """NumPy says only how much it could write. A limit on the size of files stands for the end of the disk."""
    monkeypatch.setattr(atomic_files, "LEAST_FREE_BYTES", 2**60)
    one = stage(tmp_path, write_beyond_the_limit)
    with pytest.raises(ValueError, match="the disk of .* is full; stage 'numbers' has 0 of 4 shards"):
        run_stage(one)


@pytest.mark.slow
def test_a_killed_process_of_a_pool_is_a_sentence(tmp_path):
    one = stage(tmp_path, be_killed)
    with start_pool(2) as pool, pytest.raises(ValueError, match="a process of stage 'numbers' was killed"):
        run_stage(one, pool=pool)


def test_another_configuration_is_refused_by_name(tmp_path):
    run_stage(stage(tmp_path, Numbers(), threshold=0.6))
    with pytest.raises(ValueError, match=r"stage 'numbers' .* threshold = 0.6, which is now 0.5; .*--overwrite"):
        run_stage(stage(tmp_path, Numbers(), threshold=0.5))
    with pytest.raises(ValueError, match="num_shards = 4, which is now 5"):
        run_stage(stage(tmp_path, Numbers(), num_shards=5, threshold=0.6))


def test_overwrite_removes_a_changed_stage_and_what_follows_from_it(tmp_path):
    def chain(threshold):
        first = stage(tmp_path, Numbers(), "first")
        second = stage(tmp_path, Numbers(), "second", needs=(first,), threshold=threshold)
        third = stage(tmp_path, Numbers(), "third", needs=(second,), after=second.folder.config_hash)
        return [first, second, third]

    for one in chain(0.6):
        run_stage(one)
    assert remove_changed(chain(0.6)) == []
    assert remove_changed(chain(0.5)) == ["second", "third"]
    assert [bool(one.folder.missing()) for one in chain(0.5)] == [False, True, True]


def test_a_stage_needs_the_one_before(tmp_path):
    first = stage(tmp_path, Numbers(), "first")
    second = stage(tmp_path, Numbers(), "second", needs=(first,))
    run_stage(first)
    shutil.rmtree(first.folder.shard(1))
    with pytest.raises(ValueError, match=r"'second' needs stage 'first', of which 1 of 4 shards are missing .*\(1\)"):
        run_stage(second)


def test_launches_that_know_nothing_of_each_other_share_the_shards(tmp_path):
    writes = [Numbers(), Numbers(), Numbers()]
    for rank, write in enumerate(writes):
        run_stage(stage(tmp_path, write), rank=rank, world_size=3)
    assert [write.ranks for write in writes] == [[0, 3], [1], [2]]
    assert stage(tmp_path, Numbers()).folder.missing() == []


@pytest.mark.parametrize(("rows", "world_size"), [(10, 3), (2, 5), (0, 2)])
def test_shards_cover_all_rows_once(rows, world_size):
    parts = [shard_range(rows, rank, world_size) for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_somebody_keeps_beside_the_shards_stays(tmp_path):
    """Of a stage that goes, and of one that this curation does not have; what no stage wrote is not looked at."""
    run_stage(stage(tmp_path, Numbers(), threshold=0.6))
    run_stage(stage(tmp_path, Numbers(), "earlier"))
    stages = tmp_path / "out" / "stages"
    (stages / "my_experiment").mkdir()
    (stages / "my_experiment" / "weights.pt").write_text("mine")
    (stages / ".DS_Store").touch()
    (stages / "numbers" / ".DS_Store").touch()
    (stages / "elsewhere").mkdir()
    (stages / "linked").symlink_to(stages / "earlier")
    (stages / "earlier" / "stage.json.bak").touch()
    with pytest.raises(ValueError, match="earlier would be made again, but holds stage.json.bak, which"):
        remove_changed([stage(tmp_path, Numbers(), threshold=0.5)])
    assert stage(tmp_path, Numbers(), threshold=0.6).folder.missing() == []
    (stages / "earlier" / "stage.json.bak").unlink()
    assert remove_changed([stage(tmp_path, Numbers(), threshold=0.5)]) == ["numbers"]
    assert sorted(path.name for path in stages.iterdir()) == [".DS_Store", "elsewhere", "linked", "my_experiment"]


def test_a_folder_that_no_stage_made_is_not_written_into(tmp_path):
    one = stage(tmp_path, Numbers())
    one.folder.path.mkdir(parents=True)
    (one.folder.path / "shard-00000-of-00004").write_text("mine")
    with pytest.raises(ValueError, match="numbers was not written by dinov2_hf .it has no stage.json., so nothing"):
        run_stage(one)
    with pytest.raises(ValueError, match="was not written by dinov2_hf"):
        run_stage(one)
    assert (one.folder.path / "shard-00000-of-00004").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config_hash": 3}'])
def test_damaged_records_are_a_sentence_and_not_a_finished_stage(tmp_path, content):
    one = stage(tmp_path, Numbers())
    run_stage(one)
    (one.folder.shard(1) / "manifest.json").write_text(content)
    assert one.folder.missing() == [1]
    (one.folder.path / "stage.json").write_text(content)
    with pytest.raises(ValueError, match="made with what its damaged stage.json does not tell; .* --overwrite"):
        run_stage(one)
    remove_changed([one])
    assert run_stage(one) == 4


def wait_to_be_ended(shard) -> None:
    (shard.folder / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "last_line"), [(signal.SIGINT, b"KeyboardInterrupt\n"), (signal.SIGKILL, b"")]
)
def test_the_processes_of_a_pool_end_with_the_run(tmp_path, signal_number, last_line):
    """Ctrl-C goes to all processes of the terminal, and only the first speaks; a kill goes to the first alone."""
    program = f"""
        from pathlib import Path
        from dinov2_hf.curation.executors import run_stage, start_pool
        from tests.curation.storage.test_manifests import stage, wait_to_be_ended
        if __name__ == "__main__":
            with start_pool(2) as pool:
                run_stage(stage(Path({str(tmp_path)!r}), wait_to_be_ended, num_shards=9), pool=pool)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(tmp_path / "program.py")]
    folder = tmp_path / "out" / "stages" / "numbers"
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command, env=environment, stderr=log, start_new_session=True)
        while len(found := list(folder.glob(".shard-*/*"))) < 2:
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        workers = [int(path.name) for path in found]
        if signal_number == signal.SIGINT:
            os.killpg(run.pid, signal_number)
        else:
            run.kill()
        run.wait()
    for worker in workers:
        while os.path.exists(f"/proc/{worker}") and "(zombie)" not in Path(f"/proc/{worker}/status").read_text():
            time.sleep(0.05)  # without an end, the test has none
    if signal_number == signal.SIGINT:
        assert list(folder.glob(".shard-*")) == []
    log = (tmp_path / "log").read_bytes()
    assert log.count(b"Traceback") == (signal_number == signal.SIGINT)  # of the run; the command makes it a line
    assert log.endswith(last_line)
