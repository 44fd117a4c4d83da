"""A later run notices that files have changed, wherever they are."""

import os

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov2_hf.curation.storage.file_fingerprints import file_fingerprint
from dinov2_hf.curation.storage.image_source import read_source
from dinov2_hf.curation.storage.sources import OpenSources
from tests.curation.scenes import encoded, scene, write_scenes


def fingerprint(path) -> str:
    return OpenSources([("uncurated", read_source(str(path)))]).describe()[0]["fingerprint"]


@pytest.fixture
def elsewhere(tmp_path):
    return write_scenes(tmp_path / "elsewhere", range(3))


def change(path) -> None:
    before = path.stat()
    path.write_bytes(encoded(scene(50)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_files_behind_links(tmp_path, elsewhere):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.png").symlink_to(elsewhere / "000.png")
    (tmp_path / "pool" / "folder").symlink_to(write_scenes(tmp_path / "others", range(5, 6)))
    found = [fingerprint(tmp_path / "pool")]
    for path in (elsewhere / "000.png", tmp_path / "others" / "005.png"):
        change(path)
        found.append(fingerprint(tmp_path / "pool"))
    assert len(set(found)) == 3
    change(elsewhere / "001.png")  # nothing leads there
    assert fingerprint(tmp_path / "pool") == found[-1]


def test_a_link_to_an_ancestor_and_one_to_nowhere(tmp_path):
    pool = write_scenes(tmp_path / "pool", range(2))
    (pool / "again").symlink_to(pool)
    (pool / "nowhere.txt").symlink_to(tmp_path / "nowhere")
    assert file_fingerprint(str(pool)) == file_fingerprint(str(pool))
    (tmp_path / "nowhere").write_text("there now")
    before = file_fingerprint(str(pool))
    (tmp_path / "nowhere").write_text("something else")
    assert file_fingerprint(str(pool)) != before


def test_files_that_rows_name(tmp_path, elsewhere):
    """Of rows that hold their images the names mean nothing."""
    pool = tmp_path / "pool"
    pool.mkdir()
    write_scenes(pool / "images", range(3))
    rows = [
        {"bytes": None, "path": str(pool / "images" / "000.png")},
        {"bytes": encoded(scene(1)), "path": str(pool / "images" / "001.png")},
        {"bytes": None, "path": "https://example.org/x.png"},
    ]
    schema = datasets.Features({"image": datasets.Image()}).arrow_schema
    parquet.write_table(pa.table({"image": rows}, schema=schema), pool / "rows.parquet")
    before = fingerprint(pool / "rows.parquet")
    change(pool / "images" / "001.png")
    assert fingerprint(pool / "rows.parquet") == before
    change(pool / "images" / "000.png")
    assert fingerprint(pool / "rows.parquet") != before


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", ".hidden/x.png"])
def test_what_is_not_read_does_not_count(tmp_path, name):
    pool = write_scenes(tmp_path / "pool", range(2))
    before = fingerprint(pool)
    (pool / name).parent.mkdir(exist_ok=True)
    (pool / name).write_bytes(b"view")
    assert fingerprint(pool) == before
