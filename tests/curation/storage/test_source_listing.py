"""A folder is looked through once; other processes read what was found, and notice what has changed since."""

import os
import pickle
import shutil
import sys

import datasets
import pytest

from dinov2_hf.curation import CurationArguments
from dinov2_hf.curation.plan import plan
from dinov2_hf.curation.storage.image_source import read_source
from dinov2_hf.curation.storage.source_listing import StoredListings
from dinov2_hf.curation.storage.sources import OpenSources
from tests.curation.scenes import encoded, scene, write_scenes


SCANNED: list[str] | None = None


def note_scans(event: str, args: tuple) -> None:
    if SCANNED is not None and event == "os.scandir":
        SCANNED.append(str(args[0]))  # or the number of an open folder


sys.addaudithook(note_scans)


@pytest.fixture
def scanned(monkeypatch):
    """The folders that this process looks through from now on."""
    monkeypatch.setattr(sys.modules[__name__], "SCANNED", [])
    return SCANNED


def with_classes(pool):
    write_scenes(pool / "cat", [0, 1])
    write_scenes(pool / "dog", [2])


def with_metadata(pool):
    write_scenes(pool, range(3))
    (pool / "metadata.csv").write_text("file_name,key\n000.png,x\n001.png,\n002.png,z\n")


def with_links(pool):
    write_scenes(pool.parent / "elsewhere", range(3))
    pool.mkdir()
    (pool / "a.png").symlink_to(pool.parent / "elsewhere" / "000.png")
    (pool / "folder").symlink_to(pool.parent / "elsewhere")


def of_img2dataset(pool):
    write_scenes(pool / "00000", range(3))
    datasets.Dataset.from_dict({"url": list("abc")}).to_parquet(str(pool / "00000.parquet"))


def stored(source, folder) -> OpenSources:
    sources = OpenSources([("uncurated", read_source(source))])
    sources.store(folder, is_sole_writer=True)
    return sources


def another(sources: OpenSources, folder) -> OpenSources:
    """As a launch with --rank opens them."""
    return OpenSources(list(zip(sources.roles, sources.sources, strict=True)), StoredListings(folder))


@pytest.mark.parametrize("layout", [with_classes, with_metadata, with_links, of_img2dataset])
def test_what_was_stored_is_the_source(tmp_path, layout, scanned):
    layout(tmp_path / "pool")
    source = {"path": str(tmp_path / "pool"), **({"id_column": "key"} if layout is with_metadata else {})}
    sources = stored(source, tmp_path / "listing")
    del scanned[:]
    for again in (pickle.loads(pickle.dumps(sources)), another(sources, tmp_path / "listing")):
        assert again.describe() == sources.describe()
        rows = range(len(sources))
        assert [again.image(row) for row in rows] == [sources.image(row) for row in rows]
        assert [again.image_id(row) for row in rows] == [sources.image_id(row) for row in rows]
        (before,), (after,) = sources.listings, again.listings
        assert after.features == before.features
        assert after.table.equals(before.table)
        again.refuse_changed(rows)
    assert not [folder for folder in scanned if folder.startswith(str(tmp_path / "pool"))]


def test_a_shard_is_of_the_rows_that_were_listed(tmp_path, scanned):
    """A file that comes while a curation runs would shift the rows of the shards that are still to be made."""
    pool = write_scenes(tmp_path / "pool", range(1, 4))
    curation, stages = plan(CurationArguments(uncurated=str(pool), output_dir=str(tmp_path), progress=False))
    curation.sources.store(tmp_path / "listing", is_sole_writer=True)
    write_scenes(pool, [0])
    del scanned[:]
    sources = pickle.loads(pickle.dumps(stages[0].write_shard)).args[0].sources
    assert [os.path.basename(sources.image(row)["path"]) for row in range(3)] == ["001.png", "002.png", "003.png"]
    assert len(sources) == 3
    assert scanned == []


def add(pool):
    (pool / "cat" / "new.png").write_bytes(encoded(scene(9)))


def remove(pool):
    (pool / "dog" / "002.png").unlink()


def rename(pool):
    (pool / "cat").rename(pool / "tiger")


def exchange_a_link(pool):
    (pool / "cat" / "000.png").unlink()
    (pool / "cat" / "000.png").symlink_to(pool / "dog" / "002.png")


@pytest.mark.parametrize("change", [add, remove, rename, exchange_a_link])
def test_a_folder_that_has_changed_is_looked_through_again(tmp_path, change):
    with_classes(tmp_path / "pool")
    sources = stored(str(tmp_path / "pool"), tmp_path / "listing")
    change(tmp_path / "pool")
    again = another(sources, tmp_path / "listing")
    assert again.describe() == OpenSources([("uncurated", again.sources[0])]).describe()
    assert again.describe() != sources.describe()


def test_metadata_that_are_written_in_place(tmp_path):
    pool = tmp_path / "pool"
    with_metadata(pool)
    sources = stored({"path": str(pool), "id_column": "key"}, tmp_path / "listing")
    with (pool / "metadata.csv").open("r+") as file:
        file.write("file_name,key\n000.png,w")
    assert another(sources, tmp_path / "listing").image_id(0) == "pool/w"


def test_another_split_of_a_listed_folder(tmp_path):
    write_scenes(tmp_path / "pool" / "train", range(3))
    write_scenes(tmp_path / "pool" / "test", range(1))
    stored(str(tmp_path / "pool"), tmp_path / "listing")
    other = read_source({"path": str(tmp_path / "pool"), "split": "test"})
    assert len(OpenSources([("uncurated", other)], StoredListings(tmp_path / "listing"))) == 1


def test_a_file_that_has_changed_is_met_by_the_shard_that_reads_it(tmp_path):
    with_links(tmp_path / "pool")
    sources = stored(str(tmp_path / "pool"), tmp_path / "listing")
    (tmp_path / "elsewhere" / "001.png").write_bytes(encoded(scene(50)))
    again = another(sources, tmp_path / "listing")  # no folder has changed
    assert [row for row in range(4) if again.image(row)["path"].endswith("001.png")] == [2]
    again.refuse_changed([0, 1, 3])
    with pytest.raises(ValueError, match="the file .*001.png of the source 'pool' has changed .* without --rank"):
        again.refuse_changed(range(4))
    (tmp_path / "elsewhere" / "001.png").unlink()  # reading it says more
    again.refuse_changed(range(4))


def test_a_listing_that_was_lost(tmp_path):
    with_classes(tmp_path / "pool")
    sources = stored(str(tmp_path / "pool"), tmp_path / "listing")
    task = pickle.dumps(sources)
    shutil.rmtree(tmp_path / "listing")
    assert pickle.loads(task).describe() == sources.describe()
    add(tmp_path / "pool")
    sources = OpenSources([("uncurated", sources.sources[0])])
    sources.store(tmp_path / "listing", is_sole_writer=True)
    task = pickle.dumps(sources)
    shutil.rmtree(tmp_path / "listing")
    remove(tmp_path / "pool")
    with pytest.raises(ValueError, match="pool' has changed since it was listed .* and its listing is gone"):
        pickle.loads(task)


def test_what_is_stored_and_what_is_not(tmp_path):
    """A file that is no listing stays, as do other files; parts of a killed process go; saved datasets have none."""
    with_classes(tmp_path / "pool")
    saved = datasets.Dataset.from_dict({"image": [encoded(scene(0))]}).cast_column("image", datasets.Image())
    saved.save_to_disk(str(tmp_path / "saved"))
    listing = tmp_path / "listing"
    listing.mkdir()
    for name in ("notes.txt", ".0.arrow.abcd1234"):
        (listing / name).write_text("mine")
    sources = [("uncurated", read_source(str(tmp_path / name))) for name in ("pool", "saved")]
    OpenSources(sources).store(listing, is_sole_writer=True)
    assert sorted(path.name for path in listing.iterdir()) == ["0.arrow", "notes.txt"]
    made = (listing / "0.arrow").stat()
    OpenSources(sources).store(listing, is_sole_writer=True)
    assert (listing / "0.arrow").stat().st_ino == made.st_ino  # nothing has changed, so it was not written again
    (listing / "0.arrow").write_text("mine")
    with pytest.raises(ValueError, match="0.arrow was not written by dinov2_hf, so it is not replaced"):
        OpenSources(sources).store(listing, is_sole_writer=True)
    assert (listing / "0.arrow").read_text() == "mine"


def test_a_launch_with_a_rank_looks_through_no_folder(planted, tmp_path, scanned):
    shutil.copytree(planted.folder / "pool", tmp_path / "mine" / "pool")
    share = {"world_size": 3, "uncurated": str(tmp_path / "mine" / "pool"), "curated": [], "benchmarks": []}
    planted.curate("ingest", rank=0, **share)
    del scanned[:]
    planted.curate("ingest", rank=1, **share)
    assert not [folder for folder in scanned if folder.startswith(str(tmp_path / "mine"))]
    (tmp_path / "mine" / "pool" / "011.png").write_bytes(encoded(scene(50)))
    with pytest.raises(ValueError, match="011.png of the source 'pool' has changed since the source was listed"):
        planted.curate("ingest", rank=2, **share)
    with pytest.raises(ValueError, match="made with other files of the source 'pool'"):
        planted.curate("ingest", **{**share, "world_size": None})
