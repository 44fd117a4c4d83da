"""A whole curation, of images whose vectors are known."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, Dropped, curate, read_arguments, stage
from dinov2_hf.data import load_image_dataset

from .scenes import encoded, scene, write_scenes


def dropped(output_dir) -> dict[str, tuple]:
    """id: (stage, reason, duplicate_of)."""
    rows = parquet.read_table(output_dir / "dropped.parquet").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["stage"], row["reason"].split(":")[0], row["duplicate_of"]) for row in rows}


def dataset(output_dir, tmp_path) -> datasets.Dataset:
    return datasets.load_dataset(str(output_dir / "dataset"), split="train", cache_dir=str(tmp_path / "cache"))


def test_every_image_is_in_the_dataset_or_dropped_for_the_right_reason(planted, tmp_path):
    curation = planted.curate()
    assert dropped(curation.output_dir) == {
        "pool/1": ("deduplicate", "copy in the pool (cosine > 0.6)", "pool/0"),
        "pool/2": ("deduplicate", "copy in the pool (cosine > 0.6)", "pool/0"),
        "pool/4": ("deduplicate", "copy in the pool (cosine > 0.6)", "pool/3"),
        "pool/6": ("deduplicate", "copy in the pool (cosine > 0.6)", "pool/5"),
        "pool/5": ("relative_deduplicate", "resembles a benchmark (cosine > 0.45)", "benchmark/0"),
        **{f"pool/{row}": ("select", "not retrieved", None) for row in (3, 9, 10, 11)},
    }
    found = dataset(curation.output_dir, tmp_path)
    assert [(row["id"], row["origin"], row["retrieved_for"], row["times_retrieved"]) for row in found] == [
        ("pool/0", "pool", ["curated"], 1),
        ("pool/7", "pool", ["curated"], 2),
        ("pool/8", "pool", ["curated"], 1),
        ("curated/0", "curated", [], 0),
        ("curated/1", "curated", [], 0),
    ]
    for row, seed in zip(found, (0, 7, 8, 100, 101), strict=True):
        assert row["image"].convert("RGB").tobytes() == scene(seed).tobytes()
    assert load_image_dataset(str(curation.output_dir / "dataset")).num_rows == 5  # as examples/pretrain.py reads it

    report = json.loads((curation.output_dir / "report.json").read_text())
    for before, after in zip(report["funnel"], report["funnel"][1:], strict=False):
        assert before["images_out"] == after["images_in"]
    for row in report["funnel"]:
        assert row["images_in"] - sum(row["dropped"].values()) == row["images_out"]
    assert report["funnel"][0]["images_in"] == 12
    assert report["funnel"][-1]["images_out"] == 3
    assert len(report["dataset"].pop("fingerprint")) == 16
    assert report["dataset"] == {
        "rows": 5, "images": 5, "from_the_pool": 3, "curated_as_they_are": 2, "accounting": "union",
        "retrieved_union": 3, "retrieved_multiset": 4,
    }  # fmt: skip
    nearest = report["histograms"]["Nearest benchmark image"]
    assert sum(nearest["bins"]) == 8  # what deduplication left
    assert sum(nearest["bins"][148:152]) == 1  # cosine 0.5
    assert (nearest["above"], nearest["below"], nearest["unknown"]) == (1, 7, 0)
    page = (curation.output_dir / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "resembles a benchmark (cosine &gt; 0.45): 1" in page
    card = (curation.output_dir / "dataset" / "README.md").read_text()
    assert "5 images, curated with dinov2_hf: 3 from a pool of 12, and 2 curated ones as they are." in card
    assert str(tmp_path) not in card


def test_a_multiset_repeats_what_was_retrieved_twice(planted, tmp_path):
    curation = planted.curate(accounting="multiset")
    assert dataset(curation.output_dir, tmp_path)["id"] == [
        "pool/0", "pool/7", "pool/7", "pool/8", "curated/0", "curated/1",
    ]  # fmt: skip


def test_sources_say_how_to_retrieve_and_whether_they_are_included(planted, tmp_path):
    curated = {"path": str(planted.folder / "curated"), "retrieval_num_neighbors": 1, "include": False}
    curation = planted.curate(curated=[curated])
    assert dataset(curation.output_dir, tmp_path)["id"] == ["pool/0", "pool/7"]


def test_retrieval_by_cluster(planted, tmp_path):
    """As many clusters as images: those with a curated image in it give it."""
    curated = {"path": str(planted.folder / "curated"), "retrieval": "cluster"}
    curation = planted.curate(curated=[curated], num_clusters=7, min_cluster_queries=0, include_curated=False)
    assert dataset(curation.output_dir, tmp_path)["id"] == ["pool/0", "pool/7"]
    with pytest.raises(ValueError, match="num_clusters is 8, but only 7 images of the pool are left"):
        planted.curate(curated=[curated], num_clusters=8, overwrite=True)


def test_a_hierarchy_needs_no_curated_images(planted, tmp_path):
    changes = {"curated": [], "hierarchy": [4, 2], "target_size": 5}
    curation = planted.curate(**changes)
    found = dataset(curation.output_dir, tmp_path)["id"]
    assert len(found) == 5
    assert set(found) <= {f"pool/{row}" for row in (0, 3, 7, 8, 9, 10, 11)}
    with pytest.raises(ValueError, match="hierarchy begins with 8 clusters, but only 7 images"):
        planted.curate(**{**changes, "hierarchy": [8, 2]}, overwrite=True)


def test_without_curated_images_all_that_is_left_is_taken(planted, tmp_path):
    curation = planted.curate(curated=[], benchmarks=[])
    assert dataset(curation.output_dir, tmp_path)["id"] == [f"pool/{row}" for row in (0, 3, 5, 7, 8, 9, 10, 11)]


def test_the_best_of_a_group_stays(planted, tmp_path):
    pool = write_scenes(tmp_path / "other" / "pool", range(12))
    scene(1, width=192, height=144).save(pool / "001.png")
    curation = planted.curate(uncurated=str(pool), representative="best_quality")
    assert dropped(curation.output_dir)["pool/0"][2] == "pool/1"


@pytest.mark.parametrize(("split_chains", "left"), [(False, {"pool/0"}), (True, {"pool/0", "pool/2"})])
def test_a_chain_can_be_split(planted, split_chains, left):
    """Of 0, 7 and 14 degrees the first and the last are no copies at a cosine of 0.98."""
    curation = planted.curate(deduplication_threshold=0.98, split_chains=split_chains, curated=[], benchmarks=[])
    assert {"pool/0", "pool/1", "pool/2"} - dropped(curation.output_dir).keys() == left
    page = (curation.output_dir / "report.html").read_text()
    assert '<td class="number">0.97</td>' in page  # the diameter of that group


def test_the_best_of_equal_hashes_stays(tmp_path):
    """Which of a picture's sizes stays is decided before vectors are compared, by the same rule."""
    for seed in range(4):
        (tmp_path / "pool").mkdir(exist_ok=True)
        small = scene(seed).resize((48, 36), Image.Resampling.LANCZOS)
        small.save(tmp_path / "pool" / f"a{seed}.png")
        scene(seed).save(tmp_path / "pool" / f"b{seed}.png")
    arguments = {"uncurated": str(tmp_path / "pool"), "perceptual_hash_distance": 8, "progress": False}
    for rule, stays in (("smallest_id", range(4)), ("best_quality", range(4, 8))):
        output_dir = str(tmp_path / rule)
        curation = curate(CurationArguments(**arguments, output_dir=output_dir, representative=rule), "ingest")
        assert curation.array("hash_deduplicate", "uncurated").tolist() == list(stays)


@stage("bright", title="not bright", after="embed")
def bright(curation, shard):
    row_ids, _ = curation.left()
    return Dropped(row_ids[10:], [f"bright {row}" for row in row_ids[10:]])


def test_a_stage_that_says_something_else_of_each_image(tmp_path):
    """The table of the report stays short, and still accounts for every image."""
    pool = write_scenes(tmp_path / "pool", range(40))
    stages = [f"{__name__}:bright"]
    arguments = CurationArguments(str(pool), output_dir=str(tmp_path / "out"), stages=stages, progress=False)
    report = json.loads((curate(arguments).output_dir / "report.json").read_text())
    (row,) = (row for row in report["funnel"] if row["stage"] == "bright")
    assert sum(row["dropped"].values()) == 30
    assert len(row["dropped"]) == 21
    assert row["dropped"]["other reasons"] == 10
    assert row["images_out"] == 10


def test_dropped_images_are_found_by_their_paths(planted):
    curation = planted.curate()
    files = sorted((planted.folder / "pool").iterdir())
    for row in parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist():
        assert row["path"] == str(files[row["row_id"]])


@pytest.mark.parametrize(("num_shards", "index"), [(1, "Flat"), (12, None), (5, "IVF2,Flat")])
def test_neither_shards_nor_the_index_change_what_is_chosen(planted, num_shards, index):
    expected = dropped(planted.curate().output_dir)
    found = planted.curate(output_dir=str(planted.folder / "other"), num_shards=num_shards, index=index)
    assert dropped(found.output_dir) == expected


@pytest.mark.parametrize(("given", "visited"), [(None, 5), (3, 3)])
def test_a_search_visits_as_many_lists_as_it_is_told(planted, given, visited):
    curation = planted.curate(index="IVF5,Flat", index_probes=given)
    for of in ("copies", "retrieval"):
        settings = json.loads((curation.folders[f"{of}_merge_index"].shard(0) / "settings.json").read_text())
        assert settings["num_probes"] == visited


def test_retrieval_by_vectors_of_its_own(planted, tmp_path):
    """Copies are told by one embedder, what resembles curated images by another, by which 9 is the nearest."""
    vectors = {"pool": np.eye(12, 14), "curated": np.eye(14)[[9, 9]], "benchmark": np.eye(14)[[13]]}
    (tmp_path / "others").mkdir()
    for name, array in vectors.items():
        np.save(tmp_path / "others" / f"{name}.npy", array.astype(np.float32))
    curation = planted.curate(
        retrieval_embedder=str(tmp_path / "others"), retrieval_num_neighbors=1, include_curated=False
    )
    assert dataset(curation.output_dir, tmp_path)["id"] == ["pool/9"]
    assert dropped(curation.output_dir)["pool/1"][0] == "deduplicate"


def test_curated_images_without_a_vector_are_left_out(planted, tmp_path):
    shutil.copytree(planted.folder / "vectors", tmp_path / "broken")
    vectors = np.load(tmp_path / "broken" / "curated.npy")
    vectors[1] = np.nan
    np.save(tmp_path / "broken" / "curated.npy", vectors)
    curation = planted.curate(embedder=str(tmp_path / "broken"))
    assert dropped(curation.output_dir)["curated/1"] == ("embed", "its vector is not finite", None)
    assert dataset(curation.output_dir, tmp_path)["id"] == ["pool/7", "pool/8", "curated/0"]


class RemovesSeven:
    """A filter that removes a file when its image has been read; not when it is tried on a single picture."""

    def __call__(self, images, columns):
        if len(images) > 1:
            Path(os.environ["FILE_TO_REMOVE"]).unlink(missing_ok=True)
        return [0] * len(images)


def test_images_that_vanish_before_they_are_written_are_counted_once(planted, tmp_path, monkeypatch):
    """If that is what the user wants; otherwise the run stops, since the file may be there again in an hour."""
    shutil.copytree(planted.folder / "pool", tmp_path / "copy" / "pool")
    seven = tmp_path / "copy" / "pool" / "007.png"
    monkeypatch.setenv("FILE_TO_REMOVE", str(seven))
    filters = [f"{__name__}:RemovesSeven"]
    changes = {"uncurated": str(seven.parent), "accounting": "multiset", "filters": filters, "num_shards": 1}
    with pytest.raises(ValueError, match="the image pool/7 cannot be read now .*No such file.*kept. Run the"):
        planted.curate(**changes)
    shutil.copy2(planted.folder / "pool" / "007.png", seven)
    assert len(planted.curate(**changes).folders["build"].missing()) == 0
    changes = {**changes, "output_dir": str(tmp_path / "again"), "skip_unreadable": True}
    curation = planted.curate(**changes)
    assert dropped(curation.output_dir)["pool/7"][:2] == ("build", "cannot be read again")
    report = json.loads((curation.output_dir / "report.json").read_text())
    found = dataset(curation.output_dir, tmp_path)["id"]
    assert found == ["pool/0", "pool/8", "curated/0", "curated/1"]
    assert (report["dataset"]["images"], report["dataset"]["from_the_pool"]) == (4, 2)
    assert report["funnel"][-1]["dropped"] == {"cannot be read again": 1}
    assert report["funnel"][-1]["images_out"] == 2


def test_a_second_run_in_one_process_reads_its_own_files(planted, tmp_path):
    """Also where the configuration is the same: here the vectors change behind a file of the same size and time."""
    shutil.copytree(planted.folder / "vectors", tmp_path / "mine")
    pool = tmp_path / "mine" / "pool.npy"
    assert "pool/1" in dropped(planted.curate(embedder=str(tmp_path / "mine")).output_dir)
    status = pool.stat()
    np.save(pool, np.eye(12, 14, dtype=np.float32))
    os.utime(pool, ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.rmtree(tmp_path / "out")
    found = dropped(planted.curate(embedder=str(tmp_path / "mine")).output_dir)
    assert not [row for row in found.values() if row[0] == "deduplicate"]


def test_a_refused_run_changes_nothing(planted):
    curation = planted.curate()
    before = (curation.output_dir / "curation.yaml").read_text()
    with pytest.raises(ValueError, match="deduplication_threshold"):
        planted.curate(deduplication_threshold=0.99, license="mit")
    assert (curation.output_dir / "curation.yaml").read_text() == before


def test_a_finished_dataset_is_not_put_in_place_again(planted):
    """Another program may be reading it."""
    curation = planted.curate()
    data = curation.output_dir / "dataset" / "data"
    before = data.stat().st_ino
    planted.curate()
    assert data.stat().st_ino == before


def test_launches_and_processes_give_the_same_dataset(planted, tmp_path):
    expected = dataset(planted.curate(num_shards=1).output_dir, tmp_path)
    pools = planted.curate(num_processes=2, output_dir=str(tmp_path / "pools"))
    assert dataset(pools.output_dir, tmp_path).to_dict() == expected.to_dict()
    alone = {"output_dir": str(tmp_path / "alone"), "world_size": 2}
    for name in pools.folders:
        for rank in (0, 1):
            curation = planted.curate(name, rank=rank, **alone)
    assert dataset(curation.output_dir, tmp_path).to_dict() == expected.to_dict()


def test_steps_one_by_one(planted, tmp_path):
    for step in ("ingest", "embed", "deduplicate", "relative_deduplicate", "retrieve", "build"):
        curation = planted.curate(step)
    assert len(dataset(curation.output_dir, tmp_path)) == 5
    with pytest.raises(ValueError, match="stage is 'kmeans', which is not a stage of this curation; there are ingest"):
        planted.curate("kmeans")


def test_a_step_without_the_one_before(planted):
    with pytest.raises(ValueError, match="stage 'describe' needs stage 'ingest', of which 6 of 6 shards"):
        planted.curate("embed")


def test_a_change_is_refused_before_any_work_and_overwrite_keeps_what_it_can(planted, tmp_path):
    curation = planted.curate()
    made = {name: folder.shard(0).stat().st_mtime_ns for name, folder in curation.folders.items()}
    with pytest.raises(ValueError, match="deduplication_threshold = 0.6, which is now 0.99.*--overwrite"):
        planted.curate(deduplication_threshold=0.99)
    with pytest.raises(ValueError, match="num_shards = 6, which is now 5"):
        planted.curate(num_shards=2)
    curation = planted.curate(deduplication_threshold=0.995, overwrite=True)  # 7 degrees: 0.9925
    again = {name: folder.shard(0).stat().st_mtime_ns for name, folder in curation.folders.items()}
    assert [name for name in made if made[name] == again[name]] == [
        "ingest", "hash_deduplicate", "describe", "embed",
        "copies_train_index", "copies_fill_index", "copies_merge_index", "search_copies",
        "benchmarks_train_index", "benchmarks_fill_index", "benchmarks_merge_index", "search_leaks",
    ]  # fmt: skip
    assert "deduplicate" not in {stage for stage, _, _ in dropped(curation.output_dir).values()}


def test_a_finished_curation_puts_deleted_files_back(planted):
    curation = planted.curate()
    (curation.output_dir / "report.html").unlink()
    (curation.output_dir / "dataset" / "README.md").unlink()
    planted.curate()
    assert (curation.output_dir / "report.html").exists()
    assert (curation.output_dir / "dataset" / "README.md").exists()


def test_a_benchmark_that_swallows_everything(planted):
    with pytest.raises(ValueError, match="nothing of the pool is left .* raise benchmark_threshold .now -1"):
        planted.curate(benchmark_threshold=-1.0)


def test_what_cannot_be_used_is_counted(tmp_path):
    """Broken, small, long, repeated, structureless: with the descriptor that needs no model."""
    pool = write_scenes(tmp_path / "pool", range(6))
    (pool / "a.png").write_bytes(b"broken")
    (pool / "b.png").write_bytes(b"")
    (pool / "c.png").write_bytes(encoded(scene(7))[:-200])
    Image.new("RGB", (300, 40)).save(pool / "d.png")
    (pool / "e.png").write_bytes((pool / "000.png").read_bytes())
    (pool / "f.png").write_bytes(encoded(scene(1), "BMP"))
    Image.new("RGB", (96, 72), "red").save(pool / "g.png")
    (pool / "h.jpg").write_bytes(encoded(scene(2), "JPEG", quality=60))
    mirrored = scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (pool / "i.png").write_bytes(encoded(mirrored))
    arguments = read_arguments(
        None, uncurated=[str(pool)], output_dir=str(tmp_path / "out"), max_aspect_ratio=3.0, progress=False
    )
    curation = curate(arguments)
    found = dropped(curation.output_dir)
    names = sorted(path.name for path in pool.iterdir())
    by_name = {names[int(id.split("/")[1])]: reason[:2] for id, reason in found.items()}
    assert by_name.pop("h.jpg") in (
        ("hash_deduplicate", "same perceptual hash"), ("deduplicate", "copy in the pool (cosine > 0.6)"),
    )  # fmt: skip
    assert by_name == {
        "a.png": ("ingest", "cannot be decoded"),
        "b.png": ("ingest", "cannot be decoded"),
        "c.png": ("ingest", "cannot be decoded"),
        "d.png": ("ingest", "aspect_ratio above 3"),
        "e.png": ("hash_deduplicate", "same file"),
        "f.png": ("hash_deduplicate", "same perceptual hash"),
        "g.png": ("embed", "its vector is zero"),
        "i.png": ("deduplicate", "copy in the pool (cosine > 0.6)"),
    }
    assert dataclasses.asdict(read_arguments(curation.output_dir / "curation.yaml")) == dataclasses.asdict(arguments)


def test_repeated_ids_are_dropped(tmp_path):
    rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in range(3)], "key": ["a", "b", "a"]}
    path = str(tmp_path / "pool.parquet")
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path)
    np.save(tmp_path / "vectors.npy", np.eye(3, dtype=np.float32))
    curation = curate(
        CurationArguments(
            uncurated=[{"path": path, "id_column": "key"}], output_dir=str(tmp_path / "out"),
            embedder=str(tmp_path / "vectors.npy"), keep_columns=["key"], progress=False,
        )
    )  # fmt: skip
    table = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    assert [(row["row_id"], row["id"], row["reason"]) for row in table] == [(2, "pool/a", "same id")]
    assert dataset(curation.output_dir, tmp_path)["key"] == ["a", "b"]


def test_an_empty_pool(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(3):
        (pool / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="no image of the pool is left after stage 'hash_deduplicate'"):
        curate(CurationArguments(uncurated=str(pool), output_dir=str(tmp_path / "out"), progress=False))
