"""A curation whose finished stages are in a store goes on where there is nothing but the store."""

import dataclasses
import json
import pickle
import shutil

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.arguments import STEPS
from dinov2_hf.curation.plan import plan
from dinov2_hf.curation.storage.manifests import MANIFEST
from dinov2_hf.curation.storage.remote_stages import RemoteStages
from tests.s3_server import s3_server

from .scenes import encoded, scene, write_scenes


SEEN = {"filtered": 0, "embedded": 0}
ONE_PICTURE = {"filtered": 1, "embedded": 1}  # on which a run tries what it may need


def width(images, columns):
    SEEN["filtered"] += len(images)
    return columns["width"]


def small_pixels(images):
    SEEN["embedded"] += len(images)
    return np.stack([np.asarray(image.resize((6, 6))).reshape(-1) / 255 - 0.5 for image in images])


COUNTED = {"filters": [f"{__name__}:width"], "embedder": f"{__name__}:small_pixels", "deduplication_threshold": 0.99}


@pytest.fixture
def folder(tmp_path):
    """Pools a and b, of which b repeats images of a; curated images and a benchmark."""
    write_scenes(tmp_path / "a", range(12))
    write_scenes(tmp_path / "b", range(10, 17))
    (tmp_path / "b" / "same.png").write_bytes(encoded(scene(13)))
    write_scenes(tmp_path / "curated", range(100, 102))
    write_scenes(tmp_path / "benchmark", range(7, 8))
    SEEN.update(filtered=0, embedded=0)
    return tmp_path


@pytest.fixture
def url(tmp_path):
    """An empty address of a store in memory."""
    yield f"memory://{tmp_path.name}/stages"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def store(url):
    store = fsspec.filesystem("memory")
    store.pipe_file(f"{url.rpartition('/')[0]}/beside", b"of somebody else")
    return store


def run(folder, out, pools="a", *, stage=None, rank=None, world_size=None, **changes):
    values = {"uncurated": [str(folder / name) for name in pools], "output_dir": str(folder / out), "num_shards": 2}
    arguments = CurationArguments(**{**values, "progress": False, **changes})
    return curate(arguments, stage, rank=rank, world_size=world_size)


def results(curation):
    """All that a user gets but the page, whose drawings have random names."""
    places = [*sorted((curation.output_dir / "dataset").rglob("*")), *map(curation.output_dir.joinpath, (
        "dropped.parquet", "report.json",
    ))]  # fmt: skip
    return {str(path.relative_to(curation.output_dir)): path.read_bytes() for path in places if path.is_file()}


def manifests(curation, *, timed: bool = True) -> dict[str, dict]:
    """Of all shards. Their seconds tell when they were made: of one that was fetched they are those of then."""
    found = {}
    for path in sorted((curation.output_dir / "stages").glob(f"*/*/{MANIFEST}")):
        manifest = json.loads(path.read_text())
        found[f"{path.parts[-3]}/{path.parts[-2]}"] = manifest if timed else manifest["files"]
    return found


def content(store, url) -> dict[str, bytes]:
    return {name: store.cat_file(name) for name in store.find(url)}


@pytest.mark.parametrize(
    ("changes", "half"),
    [
        (COUNTED, 2),
        ({}, 3),
        ({"hierarchy": [4, 2], "target_size": 6, "embedder": "perceptual"}, 5),
    ],
    ids=["own functions", "perceptual", "hierarchy"],
)
def test_a_run_goes_on_without_its_folder(folder, url, store, changes, half):
    changes = {"benchmarks": str(folder / "benchmark"), **changes}
    expected = run(folder, "alone", "ab", **changes)
    SEEN.update(filtered=0, embedded=0)
    for step in STEPS[:half]:
        before = manifests(run(folder, "lost", "ab", stage=step, stages_url=url, **changes))
    assert 1 < len(before) < len(manifests(expected))
    shutil.rmtree(folder / "lost")
    SEEN.update(filtered=0, embedded=0)
    gone_on = run(folder, "elsewhere", "ab", stages_url=url, **changes)
    assert SEEN == (ONE_PICTURE if "filters" in changes else {"filtered": 0, "embedded": 0})
    assert results(gone_on) == results(expected)
    assert manifests(gone_on, timed=False) == manifests(expected, timed=False)
    made = manifests(gone_on)
    assert {name: made[name] for name in before} == before
    there = content(store, url)
    again = run(folder, "third", "ab", stages_url=url, **changes)  # all is fetched, nothing is made or sent
    assert manifests(again) == made
    assert results(again) == results(expected)
    assert content(store, url) == there


def test_a_source_that_comes_on_another_machine(folder, url, store):
    """Only its images are read, and what the earlier run made of all images together goes."""
    run(folder, "first", "a", stages_url=url, **COUNTED)
    assert SEEN == {"filtered": 12 + 1, "embedded": 12 + 1}
    before = {name for name in store.find(url) if "/ingest/" in name or "/describe/" in name}
    shutil.rmtree(folder / "first")
    SEEN.update(filtered=0, embedded=0)
    grown = run(folder, "second", "ab", stages_url=url, **COUNTED)
    assert SEEN == {"filtered": 8 + 1, "embedded": 8 + 1}
    expected = run(folder, "at_once", "ab", **COUNTED)
    assert results(grown) == results(expected)
    names = set(store.find(url))
    assert before < names
    shards = {name.rpartition("/")[0] for name in names if name.endswith(MANIFEST)}
    assert len(shards) == len(manifests(expected)) == sum(one.num_shards for one in grown.folders.values())
    with pytest.raises(ValueError, match="stage 'ingest' in memory://.* the sources a, b, which are now a; choose an"):
        run(folder, "third", "a", stages_url=url, **COUNTED)
    assert set(store.find(url)) == names


def test_machines_that_share_nothing_but_the_store(folder, url):
    """Each runs its launches of a stage, and takes what the other made when it needs it."""
    changes = {"benchmarks": str(folder / "benchmark"), **COUNTED}
    expected = run(folder, "alone", "ab", **changes)
    for name in expected.folders:
        for rank, out in enumerate(("one", "other")):
            run(folder, out, "ab", stage=name, rank=rank, world_size=2, stages_url=url, **changes)
    for out in ("one", "other"):
        assert results(run(folder, out, "ab", stages_url=url, **changes)) == results(expected)


def test_another_launch_in_the_folder_fetches_a_shard_first(folder, url, monkeypatch):
    first = run(folder, "first", stages_url=url, **COUNTED)
    take, faster = RemoteStages.take, []

    def overtaken(self, stage, shard):
        found = take(self, stage, shard)
        if found and stage.name == "ingest":
            shutil.copytree(first.folders["ingest"].shard(shard.rank), stage.shard(shard.rank))
            faster.append(shard.rank)
        return found

    monkeypatch.setattr(RemoteStages, "take", overtaken)
    second = run(folder, "second", stage="embed", rank=0, world_size=1, stages_url=url, **COUNTED)
    assert faster == [0, 1]
    assert manifests(second).items() <= manifests(first).items()
    assert not list(second.folders["ingest"].path.glob(".shard-*"))


def test_a_kill_between_the_files_and_the_manifest(folder, url, store, monkeypatch):
    expected = run(folder, "alone", **COUNTED)
    put, sent = MemoryFileSystem.put_file, []

    def killed(self, path, place, **options):
        sent.append(place)
        if "/describe/" in place and place.endswith(MANIFEST):
            raise KeyboardInterrupt
        put(self, path, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "killed", stages_url=url, **COUNTED)
    shard = sent[-1].rpartition("/")[0]
    assert [name.rpartition("/")[2] for name in store.find(shard)] == ["failures.json", "rows.npy", "vectors.npy"]
    shutil.rmtree(folder / "killed")
    store.pipe_file(f"{shard}/vectors.npy", b"cut")
    SEEN.update(filtered=0, embedded=0)
    gone_on = run(folder, "elsewhere", stages_url=url, **COUNTED)
    assert SEEN["filtered"] == 1
    assert results(gone_on) == results(expected)
    assert store.cat_file(f"{shard}/vectors.npy") != b"cut"
    assert store.exists(f"{shard}/{MANIFEST}")


@pytest.mark.parametrize("damage", ["other bytes", "gone", "no manifest"])
def test_a_shard_that_is_damaged_in_the_store_is_made_again(folder, url, store, damage):
    expected = run(folder, "first", stages_url=url, **COUNTED)
    (place,) = [name for name in store.find(url) if "/select/" in name and name.endswith("selected.parquet")]
    before = store.cat_file(place)
    if damage == "other bytes":
        store.pipe_file(place, before[::-1])
    elif damage == "gone":
        store.rm_file(place)
    else:
        store.pipe_file(f"{place.rpartition('/')[0]}/{MANIFEST}", b'{"files": ')
    gone_on = run(folder, "elsewhere", stages_url=url, **COUNTED)
    assert results(gone_on) == results(expected)
    assert store.cat_file(place) == before
    assert manifests(run(folder, "third", stages_url=url, **COUNTED)) == manifests(gone_on)


def test_a_manifest_cannot_name_a_file_elsewhere(folder, url, store):
    run(folder, "first", stages_url=url, **COUNTED)
    (place,) = [name for name in store.find(url) if "/select/" in name and name.endswith(MANIFEST)]
    manifest = json.loads(store.cat_file(place))
    record = {"bytes": 4, "checksum": "0"}
    for name in (f"{folder}/theirs", "../../../../theirs"):
        store.pipe_file(place, json.dumps({**manifest, "files": {**manifest["files"], name: record}}).encode())
        store.pipe_file(f"{place.rpartition('/')[0]}/{name}", b"evil")
        shutil.rmtree(folder / "elsewhere", ignore_errors=True)
        run(folder, "elsewhere", stages_url=url, **COUNTED)
        assert not (folder / "theirs").exists()
        assert not (folder / "elsewhere" / "theirs").exists()


def test_shards_go_to_other_processes_with_the_store(folder, url):
    curation = run(folder, "first", stages_url=url, **COUNTED)
    _, stages = plan(dataclasses.replace(curation.arguments, output_dir=str(folder / "second")))
    for stage in pickle.loads(pickle.dumps(stages[:3])):
        stage.folder.path.mkdir(parents=True)
        stage.run_shard(0)
        assert stage.folder.manifest(0) == curation.folders[stage.name].manifest(0)


def test_what_was_finished_before_is_sent(folder, url, store):
    first = run(folder, "out", **COUNTED)
    run(folder, "out", stages_url=url, **COUNTED)
    assert manifests(run(folder, "elsewhere", stages_url=url, **COUNTED)) == manifests(first)


def test_other_options_are_refused_and_overwrite_removes_what_they_change(folder, url, store):
    run(folder, "first", stages_url=url, **COUNTED)
    store.pipe_file(f"{url}/build/mine.txt", b"of somebody else")
    there = content(store, url)
    other = {**COUNTED, "deduplication_threshold": 0.9}
    with pytest.raises(ValueError, match="'deduplicate' in memory://.* now 0.9; choose another stages_url, "):
        run(folder, "second", stages_url=url, **other)
    assert content(store, url) == there
    SEEN.update(filtered=0, embedded=0)
    run(folder, "second", stages_url=url, overwrite=True, **other)
    assert SEEN == ONE_PICTURE
    now = content(store, url)
    same = ("/ingest/", "/describe/", "/mine.txt")
    assert {name: text for name, text in now.items() if any(part in name for part in same)} == {
        name: text for name, text in there.items() if any(part in name for part in same)
    }
    assert not [name for name in there if "/deduplicate/shard-" in name and name in now]
    assert [name for name in now if "/deduplicate/shard-" in name and name.endswith(MANIFEST)]


def test_a_foreign_address_is_refused_and_untouched(folder, url, store):
    beside = url.rpartition("/")[0]

    def refused(message: str, **changes) -> None:
        before = content(store, beside)
        with pytest.raises(ValueError, match=message):
            run(folder, "out", **{**COUNTED, **changes})
        assert content(store, beside) == before
        assert not (folder / "out").exists()

    refused("stages_url is .*, which holds beside and was not written by dinov2_hf", stages_url=beside)
    refused("stages_url is 'stages', but must be an address, such as s3://bucket/stages", stages_url="stages")
    refused("in or around dataset_url", stages_url=url, dataset_url=f"{url}/dataset")
    refused("in or around the source", stages_url=f"{beside}/pool/stages", uncurated=f"{beside}/pool")
    run(folder, "made", dataset_url=f"{beside}/dataset", **COUNTED)
    refused("stages_url is .*, which holds a curated dataset", stages_url=f"{beside}/dataset")
    run(folder, "made", stages_url=url, stage="ingest", **COUNTED)
    refused("dataset_url is .*, which holds the stages of a curation", dataset_url=url)
    assert SEEN["embedded"] == 12 + 1


def test_dataset_and_stages_in_a_store_of_s3(folder):
    """Also on with another output folder."""
    expected = run(folder, "alone", "ab", rows_per_file=4)
    with s3_server("kept") as store:
        urls = {"stages_url": "s3://kept/stages", "dataset_url": "s3://kept/made", "rows_per_file": 4}
        run(folder, "first", "a", **urls)
        shutil.rmtree(folder / "first")
        grown = run(folder, "second", "ab", **urls)
        files = {name.rpartition("/")[2]: store.cat_file(name) for name in store.find("kept/made/data")}
        built = sorted(path for path in (expected.output_dir / "dataset" / "data").iterdir())
        assert [files[name] for name in sorted(files)] == [path.read_bytes() for path in built]
        with pytest.raises(ValueError, match="holds the dataset of a curation with another output_dir"):
            run(folder, "third", "ab", dataset_url="s3://kept/made", rows_per_file=4)
        shards = [name for name in store.find("kept/stages") if name.endswith(MANIFEST)]
        assert len(shards) == sum(one.num_shards for one in grown.folders.values())
        with pytest.raises(ValueError, match="stages_url is s3://no-bucket/x, which cannot be looked at"):
            run(folder, "third", "ab", stages_url="s3://no-bucket/x")
    assert not (folder / "second" / "dataset").exists()
