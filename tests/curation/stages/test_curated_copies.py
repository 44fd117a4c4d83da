"""Copies of curated images in the pool, benchmarks among curated images, and neighbours that copies hide."""

import json

import numpy as np
import pytest
from pyarrow import parquet

from tests.curation.conftest import planted, planted_files, unit  # noqa: F401
from tests.curation.scenes import write_scenes


def dropped(curation) -> dict[str, tuple]:
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    return {row["id"]: (row["stage"], row["reason"], row["duplicate_of"]) for row in rows}


def written(curation) -> set[str]:
    tables = [parquet.read_table(path) for path in (curation.output_dir / "dataset" / "data").glob("*.parquet")]
    return {name for table in tables for name in table["id"].to_pylist()}


@pytest.fixture
def curated_like(planted, tmp_path):  # noqa: F811
    """Curated images of known vectors: 0 repeats 2 of the pool, 1 is 9 alone, 2 resembles the benchmark."""
    write_scenes(tmp_path / "own", range(300, 303))
    folder = tmp_path / "like"
    folder.mkdir()
    for name in ("pool", "benchmark"):
        np.save(folder / f"{name}.npy", np.load(planted.folder / "vectors" / f"{name}.npy"))
    own = np.zeros((3, 14), np.float32)
    own[0, :2] = unit(21)  # 7 degrees from 2, 21 from 0, which stays for 2
    own[1, 8] = 1
    own[2, [4, 12]] = unit(60)  # cosine 0.5 to the benchmark
    np.save(folder / "own.npy", own)
    return {"curated": str(tmp_path / "own"), "embedder": str(folder)}


def test_copies_of_curated_images_are_excluded(planted, curated_like):  # noqa: F811
    curation = planted.curate(
        **curated_like, benchmarks=[], exclude_copies_of_curated=True, deduplication_threshold=0.95, selection="all"
    )
    found = {key: value for key, value in dropped(curation).items() if value[0] == "drop_curated_copies"}
    assert found == {
        "pool/0": ("drop_curated_copies", "copy of an image that repeats a curated one", "own/0"),  # 21 degrees
        "pool/9": ("drop_curated_copies", "copy of a curated image (cosine > 0.95)", "own/1"),
    }
    assert {"own/0", "own/1", "own/2"} <= written(curation)
    assert not {"pool/0", "pool/1", "pool/2", "pool/9"} & written(curation)


def test_copies_of_curated_images_that_are_not_included_stay(planted, curated_like):  # noqa: F811
    curation = planted.curate(
        **curated_like, benchmarks=[], exclude_copies_of_curated=True, include_curated=False, selection="all"
    )
    assert {"pool/0", "pool/9"} <= written(curation)


@pytest.mark.parametrize("retrieval_embedder", [None, "{vectors}"])
@pytest.mark.parametrize("removed", [False, True])
def test_benchmarks_that_leak_through_curated_images(planted, curated_like, removed, retrieval_embedder):  # noqa: F811
    """They are counted either way; the vectors of `embedder` decide."""
    if retrieval_embedder:
        other = planted.folder / "other"
        other.mkdir()
        for name in ("pool", "own"):
            np.save(other / f"{name}.npy", np.load(f"{curated_like['embedder']}/{name}.npy"))
        retrieval_embedder = str(other)
    curation = planted.curate(
        **curated_like, retrieval_embedder=retrieval_embedder, exclude_benchmark_copies_of_curated=removed
    )
    found = {key: value for key, value in dropped(curation).items() if key.startswith("own")}
    reason = "curated image that resembles a benchmark (cosine > 0.45)"
    assert found == ({"own/2": ("drop_leaks", reason, "benchmark/0")} if removed else {})
    assert ("own/2" in written(curation)) is not removed
    report = json.loads((curation.output_dir / "report.json").read_text())
    assert report["leaks_of_curated"] == {"compared": 3, "found": 1, "removed": removed, "by_source": {"own": 1}}


def test_an_image_with_as_many_copies_as_neighbours_hides_nothing(planted, tmp_path):  # noqa: F811
    """Images 0 to 4 are copies (1 degree apart), and 5 to 7. Of those that stay, 0 resembles 5 (60 degrees), which
    resembles the benchmark (another 60). With 2 neighbours both lists hold copies only."""
    folder = tmp_path / "crowd"
    folder.mkdir()
    pool = np.zeros((12, 14), np.float32)
    pool[:5, :2] = unit(0, 1, 2, 3, 4)
    pool[5:8, :2] = unit(60, 61, 62)
    pool[8:, 6:10] = np.eye(4)
    benchmark = np.zeros((1, 14), np.float32)
    benchmark[0, :2] = unit(120)
    np.save(folder / "pool.npy", pool)
    np.save(folder / "benchmark.npy", benchmark)
    curation = planted.curate(curated=[], embedder=str(folder), num_neighbors=2, benchmark_threshold=0.49)
    assert dropped(curation)["pool/0"] == (
        "relative_deduplicate", "copy of an image that resembles a benchmark", "benchmark/0",
    )  # fmt: skip
    all_known = planted.curate(
        curated=[], embedder=str(folder), num_neighbors=64, benchmark_threshold=0.49, output_dir=str(tmp_path / "all")
    )
    assert dropped(all_known) == dropped(curation)
