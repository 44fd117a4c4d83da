"""An error of reading is not a broken image."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.stages import embed
from dinov2_hf.curation.storage import image_reading
from dinov2_hf.curation.storage.image_reading import UnreadableFile, read_image_file
from dinov2_hf.data.decoding.file_content import read_content
from dinov2_hf.data.decoding.undecodable import UndecodableImage
from tests.curation.scenes import scene, write_scenes


class Disk:
    """Reads, but gives errors for one file as often as it is told."""

    def __init__(self, name: str, failures: int, error: Exception):
        self.name, self.failures, self.error, self.reads = name, failures, error, 0

    def __call__(self, value):
        if str(value["path"]).endswith(self.name):
            self.reads += 1
            if self.reads <= self.failures:
                raise self.error
        return read_content(value)


@pytest.fixture
def disk(monkeypatch):
    monkeypatch.setattr(image_reading, "SECONDS_BETWEEN_ATTEMPTS", (0.0, 0.0))

    def install(name: str, failures: int, error: Exception | None = None) -> Disk:
        disk = Disk(name, failures, error or OSError(errno.EIO, "Input/output error"))
        monkeypatch.setattr(image_reading, "read_content", disk)
        return disk

    return install


@pytest.mark.parametrize(
    "error", [OSError(errno.ESTALE, "Stale file handle"), FileNotFoundError("gone"), RuntimeError("an HTTP client's")]
)
def test_an_error_that_goes_away_costs_nothing(tmp_path, disk, error):
    pool = write_scenes(tmp_path / "pool", range(1))
    value = {"bytes": None, "path": str(pool / "000.png")}
    disk("000.png", 2, error)
    assert read_image_file(value) == (pool / "000.png").read_bytes()
    disk("000.png", 3, error)
    with pytest.raises(UnreadableFile, match=f"{type(error).__name__}: "):
        read_image_file(value)


def test_an_empty_file_is_not_tried_again(tmp_path, disk):
    (tmp_path / "a.png").touch()
    found = disk("a.png", 0)
    with pytest.raises(UndecodableImage, match="empty"):
        read_image_file({"bytes": None, "path": str(tmp_path / "a.png")})
    assert found.reads == 1


def arguments(tmp_path, **changes) -> CurationArguments:
    values = {"uncurated": str(tmp_path / "pool"), "output_dir": str(tmp_path / "out"), "progress": False}
    return CurationArguments(**{**values, "num_shards": 2, "perceptual_hash_distance": None, **changes})


@pytest.fixture
def read_again(monkeypatch):
    """Vectors are not made when images are first read, as for another embedder."""
    monkeypatch.setattr(embed, "first_vectors", lambda *_: (np.empty(0, np.int64), np.empty((0, 1), np.float32)))


@pytest.mark.parametrize("stage", ["ingest", "describe", "build"])
def test_what_could_not_be_read_is_read_by_a_later_run(tmp_path, disk, stage, read_again):
    write_scenes(tmp_path / "pool", range(12))
    before = {"ingest": (), "describe": ("ingest",)}
    for earlier in before.get(stage, ("ingest", "embed", "deduplicate", "retrieve")):
        curate(arguments(tmp_path), earlier)
    disk("007.png", 100)
    with pytest.raises(ValueError, match="pool/7 cannot be read now .*Input/output error.*--skip_unreadable"):
        curate(arguments(tmp_path), stage)
    disk("007.png", 0)
    curation = curate(arguments(tmp_path))
    dropped = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    assert "pool/7" not in [row["id"] for row in dropped if row["stage"] != "deduplicate"]


@pytest.mark.parametrize("stage", ["ingest", "embed", "build"])
def test_a_file_that_stays_unreadable_can_be_left_out(tmp_path, disk, stage, read_again):
    write_scenes(tmp_path / "pool", range(12))
    for earlier in {"ingest": (), "embed": ("ingest",)}.get(stage, ("ingest", "embed", "deduplicate", "retrieve")):
        curate(arguments(tmp_path, deduplication_threshold=1.0, seed=1), earlier)
    disk("007.png", 100)
    curation = curate(arguments(tmp_path, deduplication_threshold=1.0, seed=1, skip_unreadable=True))
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    (found,) = (row for row in rows if row["id"] == "pool/7")
    assert found["stage"] == stage
    assert found["reason"].startswith("cannot be read")
    assert "Input/output error" in found["reason"]


def test_a_run_of_which_most_images_fail_stops(tmp_path, monkeypatch):
    """From 100 failures on; here from 4. What stopped is not taken for finished, and goes on when more are allowed."""
    monkeypatch.setattr(image_reading, "FEWEST_FAILURES", 4)
    pool = write_scenes(tmp_path / "pool", range(8))
    for number in (4, 5, 6, 7):
        (pool / f"{number:03d}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="4 of 8 images of a shard of the source 'pool' cannot be .*pool/7 cannot be"):
        curate(arguments(tmp_path, max_failure_rate=0.4, num_shards=1), "ingest")
    curation = curate(arguments(tmp_path, max_failure_rate=0.5, num_shards=1), "ingest")
    assert curation.folders["ingest"].rows() == 4


class ChangesAFile:
    """A filter that replaces a file after its image was read, with the same size and time."""

    def __call__(self, images, columns):
        if len(images) > 1:
            path = Path(os.environ["FILE_TO_CHANGE"])
            content, status = path.read_bytes(), path.stat()
            other = path.with_name("003.png").read_bytes()
            assert len(other) <= len(content)
            path.write_bytes(other.ljust(len(content), b"\0"))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return [0] * len(images)


def test_an_image_that_was_exchanged_meanwhile_is_not_written(tmp_path, monkeypatch):
    pool = write_scenes(tmp_path / "pool", range(6))
    scene(4, width=192).save(pool / "004.png")
    np.save(tmp_path / "vectors.npy", np.eye(6, dtype=np.float32))
    monkeypatch.setenv("FILE_TO_CHANGE", str(pool / "004.png"))
    changes = {"filters": [f"{__name__}:ChangesAFile"], "embedder": str(tmp_path / "vectors.npy")}
    values = CurationArguments(str(pool), output_dir=str(tmp_path / "out"), num_shards=1, progress=False, **changes)
    with pytest.raises(ValueError, match="the image pool/4 cannot be read now .the file is not the one that was read"):
        curate(values)
