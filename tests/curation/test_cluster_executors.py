"""Stages by datatrove: on this machine, with Ray, and the jobs that Slurm would get."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml

from dinov2_hf.curation import curate, read_arguments
from dinov2_hf.curation.cluster_executors import ShardTask
from dinov2_hf.curation.plan import plan
from dinov2_hf.output_folders import part_writer, sole_writer


pytest.importorskip("datatrove")


class KillsItself:
    """A filter that kills its process at one image, as long as there is a file that says so."""

    def __call__(self, images, columns):
        for image in images:
            if image.getpixel((0, 0)) == (1, 2, 3) and os.path.exists(os.environ["KILL_FILE"]):
                os.kill(os.getpid(), signal.SIGKILL)
        return [0] * len(images)


def command(planted, **changes) -> list[str]:
    arguments = planted.arguments(curated=[], benchmarks=[], num_shards=4, **changes)
    recipe = planted.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({name: value for name, value in vars(arguments).items() if value is not None}))
    return [sys.executable, "-m", "dinov2_hf.cli", "curate", "--config", str(recipe)]


def test_a_shard_with_a_wrong_checksum_is_made_again_where_it_is_asked_for(planted):
    curation = planted.curate("ingest", curated=[], benchmarks=[])
    _, stages = plan(curation.arguments)
    file = curation.folders["ingest"].shard(1) / "images.parquet"
    before = file.read_bytes()
    file.write_bytes(before[:-8] + b"somewhat")
    ShardTask(stages[0])(None, 1, 3)
    assert file.read_bytes() != before
    ShardTask(stages[0], verify=True)(None, 1, 3)
    assert file.read_bytes() == before


def test_a_killed_task_is_made_again_and_no_other(planted, tmp_path, monkeypatch):
    from PIL import Image

    from .scenes import write_scenes

    pool = write_scenes(tmp_path / "other" / "pool", range(12))
    image = Image.open(pool / "007.png").convert("RGB")
    image.putpixel((0, 0), (1, 2, 3))
    image.save(pool / "007.png")
    kill = tmp_path / "kill"
    kill.touch()
    words = command(
        planted, uncurated=str(pool), filters=[f"{__name__}:KillsItself"], executor="local", num_processes=2
    )
    environment = {**os.environ, "KILL_FILE": str(kill), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), environment.get("PYTHONPATH", "")])
    with (tmp_path / "log").open("w") as log:
        launch = subprocess.Popen(
            [*words, "--stage", "ingest"], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        folder = tmp_path / "out" / "stages" / "ingest"
        deadline = time.monotonic() + 300
        while len(list(folder.glob("shard-*/manifest.json"))) < 3:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert launch.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(launch.pid, signal.SIGKILL)
        launch.wait()
    made = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert sorted(path.name for path in made) == [f"shard-0000{rank}-of-00004" for rank in (0, 1, 3)]
    kill.unlink()
    monkeypatch.setenv("KILL_FILE", str(kill))
    recipe = read_arguments(planted.folder / "recipe.yaml", num_processes=1)  # for one task this process will do
    curation = curate(recipe, "ingest")
    assert curation.folders["ingest"].missing() == []
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert curation.folders["ingest"].rows() == 12


def test_a_task_of_slurm_holds_its_part(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("dinov2_hf.output_folders.SECONDS_TO_REGISTER", 0.01)
    _, stages = plan(planted.arguments())
    stages[0].folder.open()
    task = ShardTask(stages[0], "slurm")
    with sole_writer(tmp_path / "out"), pytest.raises(ValueError, match="out is being written by another process"):
        task(None, 1, 6)
    with part_writer(tmp_path / "out", "ingest.0-of-6"):
        task(None, 1, 6)
    assert stages[0].folder.missing() == [0, 2, 3, 4, 5]


def test_ray_on_one_machine(planted, tmp_path):
    ray = pytest.importorskip("ray")
    planted.curate("ingest", num_shards=2)
    # Two tasks in one job: a worker of Ray takes as long to start as this whole test.
    options = {"mem_per_cpu_gb": 0.1, "tasks_per_job": 2}
    try:
        curation = planted.curate("embed", num_shards=2, executor="ray", executor_options=options)
    finally:
        ray.shutdown()
    assert curation.folders["embed"].missing() == []
    planted.curate("ingest", num_shards=2, output_dir=str(tmp_path / "here"))
    here = planted.curate("embed", num_shards=2, output_dir=str(tmp_path / "here"))
    for rank in range(2):
        manifests = [
            json.loads((c.folders["embed"].shard(rank) / "manifest.json").read_text()) for c in (curation, here)
        ]
        assert manifests[0] == manifests[1]


def test_the_jobs_of_slurm(planted, tmp_path, monkeypatch):
    """A program in the place of sbatch notes what it gets."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sbatch").write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
notes = pathlib.Path({str(tmp_path / "jobs.jsonl")!r})
number = 1 + (len(notes.read_text().splitlines()) if notes.exists() else 0)
with notes.open("a") as file:
    file.write(json.dumps([sys.argv[1:], pathlib.Path(sys.argv[-1]).read_text()]) + "\\n")
print("Submitted batch job", number)
"""
    )
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    options = {"partition": "cpu", "time": "01:00:00", "mem_per_cpu_gb": 4}
    planted.curate("ingest", executor="slurm", executor_options=options, num_shards=4)
    jobs = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    names = [re.search(r"job-name=(\S+)", script)[1] for _, script in jobs]
    assert list(dict.fromkeys(names)) == ["curate-ingest", "curate-hash_deduplicate"]
    first, second = (next(job for job, name in zip(jobs, names, strict=True) if name == wanted) for wanted in
                     ("curate-ingest", "curate-hash_deduplicate"))  # fmt: skip
    assert "--array=0-6" in first[1]
    assert "--partition=cpu" in first[1]
    assert any("afterok:1" in word for word in second[0])
    with part_writer(tmp_path / "out", "ingest.0-of-7"):  # as a job does, while it runs
        with pytest.raises(ValueError, match="out is being written by another process"):
            planted.curate("ingest", executor="slurm", executor_options=options, num_shards=4)
        with pytest.raises(ValueError, match="out is being written by another process"):
            planted.curate(num_shards=4)
    with pytest.raises(ValueError, match="executor_options lacks time, partition, which slurm needs"):
        planted.curate("ingest", executor="slurm", num_shards=4)
    with pytest.raises(ValueError, match="executor_options has 'colour', but slurm takes time, partition"):
        planted.curate("ingest", executor="slurm", executor_options={**options, "colour": 1}, num_shards=4)
