"""Numbers of the report, in curations so small that each is known by heart."""

import json

import datasets
import numpy as np
import pytest
from pyarrow import parquet

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.algorithms.histograms import histogram, sum_of_histograms
from dinov2_hf.curation.algorithms.index_settings import IndexSettings
from dinov2_hf.curation.report.histogram_pictures import draw_histogram
from tests.curation.scenes import encoded, scene, write_scenes


def report_of(curation) -> dict:
    return json.loads((curation.output_dir / "report.json").read_text())


def source_of(report: dict, name: str) -> dict:
    (found,) = (source for source in report["sources"] if source["name"] == name)
    return found


def test_similarities_are_counted_one_by_one_and_what_is_not_known_is_said():
    about = {"title": "t", "label": ""}
    values = np.array([0.604, 0.606, 0.2, -np.inf], np.float32)
    found = histogram(values, 0.605, missing=2, floor=0.1, **about)
    assert (found.above, found.below, found.unknown, found.floor) == (1, 2, 3, 0.1)
    assert sum(found.bins) == 3
    both = sum_of_histograms([found, histogram(np.array([0.605]), 0.605, **about)])
    assert (both.above, both.below, both.unknown, both.floor, sum(both.bins)) == (1, 2, 3, 0.1, 4)


@pytest.mark.parametrize(("side", "said"), [("above", "copies above 0.5: 4"), ("below", "not taken below 0.5: 36")])
def test_a_histogram_counts_on_the_side_that_it_names(side, said):
    values = np.repeat([0.1, 0.9], [36, 4])
    picture = draw_histogram(histogram(values, 0.5, "t", side=side, label=said.split(" 0.5")[0]))
    assert said in picture
    assert "not shown" not in picture


def test_a_histogram_says_what_it_does_not_show():
    picture = draw_histogram(histogram(np.array([0.7, -np.inf]), 0.6, "t", label="", floor=0.45))
    assert "not shown: 1 images below 0.45, where the search stops" in picture


def test_min_similarity_counts_what_is_below_it(planted):
    """Cosines of the curated images: 0.667 to 7 and 0.333 to 8, 0.667 to 0 and 0.333 to 7."""
    report = report_of(planted.curate(min_similarity=0.5))
    found = report["histograms"]["Image of the pool and the curated image it was found for"]
    assert (found["above"], found["below"], found["side"]) == (2, 2, "below")
    assert report["select"]["sources"]["curated"]["below_floor"] == 2
    page = (planted.folder / "out" / "report.html").read_text()
    assert "pairs not retrieved below 0.5: 2" in page


def test_a_multiset_counts_images_and_rows(planted):
    curation = planted.curate(accounting="multiset", include_curated=False)
    report = report_of(curation)
    assert (report["dataset"]["images"], report["dataset"]["rows"], report["dataset"]["from_the_pool"]) == (3, 4, 3)
    pool = source_of(report, "pool")
    assert (pool["in_dataset"], pool["rows_of_dataset"]) == (3, 4)
    page = (curation.output_dir / "report.html").read_text()
    assert "3 of 12 images of the pool; with repeats (multiset) 4 rows." in page
    card = (curation.output_dir / "dataset" / "README.md").read_text()
    assert "3 images, curated with dinov2_hf: 3 from a pool of 12. With repeats they are 4 rows." in card


def test_what_two_sources_brought_counts_for_both(planted, tmp_path):
    """The first brings 7 and 8 by its image 0, the second 0 and 7 by its image 1."""
    vectors = planted.folder / "two"
    vectors.mkdir()
    for name in ("pool", "benchmark"):
        np.save(vectors / f"{name}.npy", np.load(planted.folder / "vectors" / f"{name}.npy"))
    curated = np.load(planted.folder / "vectors" / "curated.npy")
    for row, name in enumerate(("first", "second")):
        write_scenes(tmp_path / name, [300 + row])
        np.save(vectors / f"{name}.npy", curated[[row]])
    sources = [str(tmp_path / "first"), {"path": str(tmp_path / "second"), "retrieval": "sample"}]
    curation = planted.curate(curated=sources, embedder=str(vectors), accounting="multiset", include_curated=False)
    found = datasets.load_dataset(
        str(curation.output_dir / "dataset"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(zip(found["id"], found["retrieved_for"], strict=True)) == [
        ("pool/0", ["second"]), ("pool/7", ["first", "second"]), ("pool/7", ["first", "second"]),
        ("pool/8", ["first"]),
    ]  # fmt: skip
    report = report_of(curation)
    assert [source_of(report, name)["retrieved_for_it"] for name in ("first", "second")] == [2, 2]
    assert [report["select"]["sources"][name]["brought_alone"] for name in ("first", "second")] == [1, 1]


def test_the_end_of_a_chain_is_not_called_a_copy(planted):
    """0, 7 and 14 degrees at 0.98: the last resembles the second only (cosine 0.97 to the one that stays)."""
    curation = planted.curate(deduplication_threshold=0.98, curated=[], benchmarks=[])
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    reasons = {row["id"]: (row["reason"], round(row["similarity"], 2)) for row in rows}
    assert reasons["pool/1"] == ("copy in the pool (cosine > 0.98)", 0.99)
    assert reasons["pool/2"] == ("end of a chain of copies (cosine > 0.98 from one to the next)", 0.97)


def test_filters_are_for_the_pool_only(planted, tmp_path):
    """All images are 96 x 72: of the pool all go but one, of the others none."""
    pool = write_scenes(tmp_path / "large" / "pool", range(12))
    scene(7, width=400, height=300).save(pool / "007.png")
    curation = planted.curate(
        uncurated=str(pool), min_side=100, retrieval_num_neighbors=1, filters=[{f"{__name__}:shorter": {"min": 100}}]
    )
    report = report_of(curation)
    assert source_of(report, "pool")["dropped"] == {"ingest": 11}
    assert source_of(report, "curated")["dropped"] == {}
    assert report["dataset"]["curated_as_they_are"] == 2


def shorter(images, columns):
    return [min(image.size) for image in images]


def test_images_without_an_id_are_not_one_image(tmp_path):
    keys = ["a", None, None, "", "a", ""]
    rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in range(6)], "key": keys}
    path = str(tmp_path / "pool.parquet")
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path)
    np.save(tmp_path / "vectors.npy", np.eye(6, dtype=np.float32))
    curation = curate(
        CurationArguments(
            uncurated=[{"path": path, "id_column": "key"}], output_dir=str(tmp_path / "out"),
            embedder=str(tmp_path / "vectors.npy"), progress=False,
        )
    )  # fmt: skip
    assert [row["id"] for row in parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()] == ["pool/a"]
    kept = datasets.load_dataset(str(curation.output_dir / "dataset"), split="train", cache_dir=str(tmp_path / "c"))
    assert kept["id"] == ["pool/a", "pool/row 1", "pool/row 2", "pool/row 3", "pool/row 5"]


def test_what_an_inexact_search_does_not_know_is_counted_apart(planted, monkeypatch):
    """Where candidates are ranked again, a search stops at the lower of the two thresholds. That is so for quantised
    vectors, whose codes cannot be learned from twelve."""
    monkeypatch.setattr(IndexSettings, "is_exact", property(lambda settings: False))
    report = report_of(planted.curate(index="IVF2,Flat", index_probes=2, num_shards=4))
    copies, benchmarks, retrieval = report["searches"]
    assert benchmarks == {"among": "benchmarks", "images": 1, "index": "Flat"}
    assert [copies[name] for name in ("among", "images", "index", "lists", "lists_visited")] == [
        "copies", 12, "IVF2,Flat", 2, 2,
    ]  # fmt: skip
    # Fewer than 100 pairs are above the floor; of those at a cosine of 0 all count.
    assert copies["recall"] == {"asked": 0.99, "measured": 1.0, "pairs": 132, "queries": 12}
    assert (retrieval["among"], retrieval["images"]) == ("retrieval", 7)
    assert retrieval["recall"] == {"asked": 0.99, "measured": 1.0, "pairs": 4, "queries": 2}
    found = report["histograms"]["Nearest other image of the pool"]
    assert (found["floor"], found["above"], found["unknown"]) == (0.45, 7, 5)
    assert sum(found["bins"]) == 7
    page = (planted.folder / "out" / "report.html").read_text()
    assert "not shown: 5 images below 0.45, where the search stops" in page
