"""The dataset and the report in their places."""

import errno
import os

import datasets
import pytest

from dinov2_hf.curation import publishing
from dinov2_hf.data import load_image_dataset


def ids(folder, cache) -> list[str]:
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))["id"][:]


@pytest.mark.slow
def test_two_datasets_of_one_name_are_not_mixed_up_in_one_cache(planted, tmp_path):
    """`load_dataset` knows a folder by its last name, the name of the configuration, and those of the files."""
    some, others = (tmp_path / name / "dataset" for name in "ab")
    planted.curate(output_dir=str(some.parent), retrieval_num_neighbors=1)
    planted.curate(output_dir=str(others.parent), retrieval_num_neighbors=3)
    found = [ids(folder, tmp_path / "cache") for folder in (some, others)]
    assert found[0] == ["pool/0", "pool/7", "curated/0", "curated/1"]
    assert found[1] == ["pool/0", "pool/3", "pool/7", "pool/8", "curated/0", "curated/1"]
    planted.curate(output_dir=str(others.parent), retrieval_num_neighbors=1, overwrite=True)
    assert ids(others, tmp_path / "cache") == found[0]
    planted.curate(output_dir=str(others.parent), retrieval_num_neighbors=1, include_curated=False, overwrite=True)
    assert ids(others, tmp_path / "cache") == found[0][:2]
    assert load_image_dataset(str(others), cache_dir=str(tmp_path / "cache"))["id"][:] == found[0][:2]
    assert load_image_dataset(str(some), cache_dir=str(tmp_path / "cache"))["id"][:] == found[0]


@pytest.mark.parametrize("function", ["copy2", "link"])
def test_a_full_disk_leaves_the_earlier_report_and_dataset_whole(planted, tmp_path, monkeypatch, function):
    output_dir = planted.curate().output_dir
    names = ["report.html", "report.json", "dropped.parquet", "dataset/README.md"]
    before = {name: (output_dir / name).read_bytes() for name in names}
    rows = ids(output_dir / "dataset", tmp_path / "cache")

    def fill_the_disk(source, target, **options):
        target.write_bytes(source.read_bytes()[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if function == "link":
            patch.setattr(os, "link", fill_the_disk)
        patch.setattr(publishing.shutil, "copy2", fill_the_disk)
        with pytest.raises(ValueError, match="could not be written, as the disk is full .*; what was there before is"):
            planted.curate(retrieval_num_neighbors=1, overwrite=True)
    assert {name: (output_dir / name).read_bytes() for name in names} == before
    assert ids(output_dir / "dataset", tmp_path / "other_cache") == rows
    assert [path.name for path in output_dir.iterdir() if path.name.startswith(".")] == [".dinov2_hf.json"]
    planted.curate(retrieval_num_neighbors=1)
    assert ids(output_dir / "dataset", tmp_path / "cache") == ["pool/0", "pool/7", "curated/0", "curated/1"]
    assert (output_dir / "report.html").read_bytes() != before["report.html"]


def test_a_file_system_without_hard_links(planted, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    data = planted.curate().output_dir / "dataset" / "data"
    assert len(ids(data.parent, tmp_path / "cache")) == 5
    made = [os.stat(path).st_ino for path in data.iterdir()]
    planted.curate()
    assert [os.stat(path).st_ino for path in data.iterdir()] == made
