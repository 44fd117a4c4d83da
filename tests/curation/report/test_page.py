"""The page of the report: what stands first, what is drawn, and that the same images make the same bytes."""

import datetime
import json
import re

import numpy as np
import pytest

from dinov2_hf.curation.report.warnings import warnings_of
from tests.curation.conftest import planted, planted_files  # noqa: F401
from tests.curation.scenes import encoded, scene


def test_the_same_images_make_the_same_report(planted, tmp_path):  # noqa: F811
    """Times are in a file of their own."""
    found = []
    for name in ("first", "second"):
        output_dir = planted.curate(output_dir=str(tmp_path / name)).output_dir
        found.append([(output_dir / file).read_bytes() for file in ("report.html", "report.json", "dropped.parquet")])
        timings = json.loads((output_dir / "timings.json").read_text())
        assert list(timings)[:2] == ["ingest", "hash_deduplicate"]
        assert timings["ingest"]["images"] == 15  # of all sources
        assert timings["search_copies"]["shards"] == 3
        assert all(stage["seconds"] >= 0 for stage in timings.values())
    assert found[0] == found[1]
    assert str(datetime.date.today()).encode() not in found[0][0]


def test_pairs_beside_the_thresholds(planted):  # noqa: F811
    """Of 12 images, 0 to 2 and 3 to 4 are copies (cosines 0.993, 0.970); 5 and 6 have 0.766. 5 is 0.5 from the
    benchmark."""
    curation = planted.curate()
    report = json.loads((curation.output_dir / "report.json").read_text())
    beside = report["deduplicate"]["pairs_beside_threshold"]
    pairs = [tuple(pair[:2]) for pair in beside["above"]]
    assert pairs[:2] == [(5, 6), (0, 2)]
    assert set(pairs[2:]) == {(0, 1), (1, 2), (3, 4)}  # all 7 degrees apart
    assert beside["below"] == []
    dropped = {row["threshold"]: row["images_dropped"] for row in report["deduplicate"]["thresholds"]}
    assert dropped[0.6] == dropped[0.75] == 4
    assert dropped[0.8] == 3
    benchmark = report["relative_deduplicate"]
    assert benchmark["pairs_beside_threshold"]["below"] == []
    assert benchmark["pairs_beside_threshold"]["above"] == [[5, 14, pytest.approx(0.5, abs=1e-3)]]  # half precision
    assert benchmark["dropped_by_benchmark"] == {"benchmark": 1}
    assert [row["images_dropped"] for row in benchmark["thresholds"]] == [1] * 4 + [0] * 6
    page = (curation.output_dir / "report.html").read_text()
    assert "Just above 0.6" in page
    assert "too few images to tell how many pairs chance brings" in page
    assert page.index("Nothing stands out.") < page.index("From the pool to the dataset")


def test_sizes_formats_and_options(planted, tmp_path):  # noqa: F811
    pool = tmp_path / "mixed" / "pool"
    pool.mkdir(parents=True)
    for seed in range(12):
        width = 300 if seed == 7 else 96
        name, kind = (f"{seed:03d}.jpg", "JPEG") if seed % 2 else (f"{seed:03d}.png", "PNG")
        (pool / name).write_bytes(encoded(scene(seed, width=width), kind))
    curation = planted.curate(uncurated=str(pool), include_curated=False)
    report = json.loads((curation.output_dir / "report.json").read_text())
    sizes = report["sizes"]
    assert sizes["format of the file"] == {"JPEG": {"pool": 6, "dataset": 1}, "PNG": {"pool": 6, "dataset": 2}}
    assert sizes["shorter side, pixels"] == {"up to 127": {"pool": 12, "dataset": 3}}
    assert sizes["longer over shorter side"] == {
        "up to 1.4": {"pool": 11, "dataset": 2}, "above 3": {"pool": 1, "dataset": 1},
    }  # fmt: skip
    assert report["changed_options"] == {
        "uncurated": ["pool"], "curated": ["curated"], "benchmarks": ["benchmark"], "embedder": "vectors",
        "retrieval_num_neighbors": 2, "include_curated": False,
    }  # fmt: skip
    assert report["provenance"]["models"] == {"embedder": "vectors"}
    assert "torch" in report["provenance"]["versions"]
    assert str(tmp_path) not in (curation.output_dir / "report.html").read_text()


def test_leaks_and_lost_images_are_the_first_thing_that_is_read(planted, tmp_path):  # noqa: F811
    curated = np.load(planted.folder / "vectors" / "curated.npy")
    curated[1] = 0
    curated[1, [4, 12]] = 1  # cosine 0.71 to the benchmark
    (tmp_path / "leaking").mkdir()
    np.save(tmp_path / "leaking" / "curated.npy", curated)
    pool = np.load(planted.folder / "vectors" / "pool.npy")
    pool[11] = np.nan
    np.save(tmp_path / "leaking" / "pool.npy", pool)
    np.save(tmp_path / "leaking" / "benchmark.npy", np.load(planted.folder / "vectors" / "benchmark.npy"))
    curation = planted.curate(embedder=str(tmp_path / "leaking"))
    report = json.loads((curation.output_dir / "report.json").read_text())
    assert report["warnings"] == [
        "Curated images in the dataset that resemble one of a benchmark: 1 (curated 1)."
        " exclude_benchmark_copies_of_curated leaves them out.",
        "1 of 12 images of the pool (8.3 %) have no usable vector.",
    ]
    page = (curation.output_dir / "report.html").read_text()
    assert page.index(report["warnings"][0]) < page.index("From the pool to the dataset")
    pictured = re.findall(r'title="([^"]+)"', page[page.index("<h2>Benchmarks</h2>") :])
    assert pictured[:2] == ["benchmark/0", "curated/1"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"deduplicate": {"threshold": 0.6, "thresholds": [{"threshold": 0.6, "false_neighbors_of_an_image": 0.8}]}},
         "each image of the pool has about 0.8 neighbours above the threshold of copies, 0.6"),
        ({"relative_deduplicate": {"threshold": 0.45,
                                   "thresholds": [{"threshold": 0.45, "false_neighbors_of_an_image": 1.32}]}},
         "above 0.45 to about 1.3 benchmark images"),
        ({"searches": [{"among": "copies", "lists": 9, "lists_visited": 9,
                        "recall": {"asked": 0.99, "measured": 0.95, "pairs": 100, "queries": 10}}]},
         "The search among copies finds 95.00% of the true neighbours, but 99.00% were asked for (search_recall): no"),
        ({"deduplicate": {"dropped": 10, "chained_rows": 4, "chains_split": False}}, "split_chains keeps one more"),
        ({"funnel": [{"stage": "deduplicate", "images_in": 10, "images_out": 4, "dropped": {}}]},
         "deduplicate dropped 60 % of the pool"),
        ({"sources": [{"name": "a", "role": "uncurated", "splits_not_read": {"test": 3}}]},
         "Some splits of a were not read: test"),
    ],
)  # fmt: skip
def test_warnings(changes, sentence):
    report = {
        "leaks_of_curated": {}, "deduplicate": {}, "relative_deduplicate": {}, "select": {}, "sources": [],
        "searches": [{"among": "benchmarks", "images": 3, "index": "Flat"}],
        "funnel": [{"stage": "ingest", "images_in": 10, "images_out": 10, "dropped": {}}], **changes,
    }  # fmt: skip
    found = warnings_of(report)
    assert len(found) == (0 if sentence is None else 1)
    assert sentence is None or sentence in found[0]
