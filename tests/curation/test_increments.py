"""A run with further sources in the folder of an earlier one is the run over all of them, and keeps what it can."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.algorithms.index_settings import IndexSettings
from dinov2_hf.curation.stages import index as index_stages
from dinov2_hf.curation.stages import pool_parts
from dinov2_hf.curation.storage.edge_files import load_edges

from .scenes import encoded, scene, write_scenes


def small_pixels(images):
    """An embedder that learns nothing from the pool."""
    return np.stack([np.asarray(image.resize((6, 6))).reshape(-1) / 255 - 0.5 for image in images])


def no_red(images):
    """One that gives no vector for some of them."""
    vectors = small_pixels(images)
    vectors[[np.asarray(image)[0, 0].tolist() == [255, 0, 0] for image in images]] = 0
    return vectors


@pytest.fixture
def folder(tmp_path):
    """Pools a, b and c, of which b repeats images of a and c of both; curated images and a benchmark."""
    write_scenes(tmp_path / "a", range(12))
    write_scenes(tmp_path / "b", range(10, 18))
    write_scenes(tmp_path / "c", [*range(3), *range(15, 22)])
    scene(5, width=192, height=144).save(tmp_path / "b" / "large.png")
    (tmp_path / "a" / "same.png").write_bytes(encoded(scene(3)))
    (tmp_path / "b" / "broken.png").write_bytes(b"broken")
    write_scenes(tmp_path / "curated", range(100, 102))
    write_scenes(tmp_path / "other", range(102, 104))
    write_scenes(tmp_path / "benchmark", range(7, 8))
    return tmp_path


def run(folder, out, pools, **changes):
    values = {"uncurated": [str(folder / name) for name in pools], "output_dir": str(folder / out), "num_shards": 2}
    return curate(CurationArguments(**values, progress=False, **changes))


def results(curation):
    """All that a user gets but the page, whose drawings have random names."""
    places = [*sorted((curation.output_dir / "dataset").rglob("*")), *map(curation.output_dir.joinpath, (
        "dropped.parquet", "report.json",
    ))]  # fmt: skip
    return {str(path.relative_to(curation.output_dir)): path.read_bytes() for path in places if path.is_file()}


def made(curation, *stages):
    """What stages wrote, by the file itself: one that was written again is another."""
    return {
        (name, path.stat().st_ino, path.stat().st_mtime_ns)
        for name in stages
        for path in curation.folders[name].path.rglob("*")
        if path.suffix in (".parquet", ".npy")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"representative": "best_quality"},
        {"embedder": f"{__name__}:small_pixels", "deduplication_threshold": 0.99},
        {"perceptual_hash_distance": 6},
        {"deduplicate_content": False, "perceptual_hash_distance": None},
    ],
    ids=str,
)
def test_adding_a_source_is_one_run_over_all(folder, changes):
    first = run(folder, "grown", "a", **changes)
    before = made(first, "ingest", "describe")
    grown = run(folder, "grown", "ab", **changes)
    assert results(grown) == results(run(folder, "at_once", "ab", **changes))
    assert before < made(grown, "ingest", "describe")
    assert not list((folder / "grown" / "stages").glob("*/kept-*"))
    assert not any(folder.missing() for folder in run(folder, "grown", "ab", **changes).folders.values())


@pytest.mark.parametrize("changes", [{}, {"representative": "best_quality"}], ids=str)
def test_removing_a_source_is_one_run_without_it(folder, changes):
    """Also the first, whose images had stayed for copies in others."""
    before = made(run(folder, "shrunk", "abc", **changes), "ingest", "describe")
    with pytest.raises(ValueError, match="the sources a, b, c, which are now b, c; .* --overwrite, which keeps what"):
        run(folder, "shrunk", "bc", **changes)
    shrunk = run(folder, "shrunk", "bc", **changes, overwrite=True)
    assert results(shrunk) == results(run(folder, "at_once", "bc", **changes))
    assert made(shrunk, "ingest", "describe") < before


def test_curated_images_and_benchmarks_are_added_too(folder):
    """Their rows are numbered after the pool, so a further pool moves them."""
    retrieval = {"retrieval_num_neighbors": 2, "embedder": "perceptual"}
    curated = {"curated": [str(folder / "curated")], **retrieval}
    first = run(folder, "grown", "a", **curated)
    before = made(first, "ingest", "describe")
    for more in (
        {"pools": "ac", **curated},
        {"pools": "ac", **curated, "benchmarks": [str(folder / "benchmark")]},
        {"pools": "abc", "curated": [str(folder / "other"), str(folder / "curated")], **retrieval,
         "benchmarks": [str(folder / "benchmark")]},
    ):  # fmt: skip
        grown = run(folder, "grown", **more)
        assert before < made(grown, "ingest", "describe")
        before = made(grown, "ingest", "describe")
    assert results(grown) == results(run(folder, "at_once", **more))


def test_a_second_embedder_describes_what_is_new(folder):
    changes = {"hierarchy": [4, 2], "target_size": 6, "retrieval_embedder": f"{__name__}:small_pixels"}
    before = made(run(folder, "grown", "a", **changes), "retrieval_describe")
    grown = run(folder, "grown", "ab", **changes)
    assert before < made(grown, "retrieval_describe")
    assert results(grown) == results(run(folder, "at_once", "ab", **changes))


@pytest.mark.parametrize("pools", ["ab", "ba"])
def test_a_copy_stands_in_also_from_another_source(folder, pools):
    """Red corners have no vector. The best of three sizes has one, and so has the smallest, in the other source."""
    for number, (source, width) in enumerate([("a", 192), ("b", 144), ("a", 96)]):
        image = scene(30).resize((width, width * 3 // 4), Image.Resampling.LANCZOS)
        if number != 1:
            image.putpixel((0, 0), (255, 0, 0))
        image.save(folder / source / f"z{width}.png")
    changes = {"embedder": f"{__name__}:no_red", "representative": "best_quality", "perceptual_hash_distance": 8}
    run(folder, "grown", pools[0], **changes)
    grown, at_once = run(folder, "grown", pools, **changes), run(folder, "at_once", pools, **changes)
    assert results(grown) == results(at_once)
    stand_ins = np.concatenate([np.load(path) for path in at_once.folders["embed"].files("stand_ins.npy")])
    names = [at_once.facts(stand_ins[:, column], ["path"])["path"].to_pylist() for column in (0, 1)]
    assert [[path.rsplit("/", 1)[1] for path in paths] for paths in names] == [["z144.png"], ["z192.png"]]


PIXELS = {"embedder": f"{__name__}:small_pixels", "perceptual_hash_distance": None}


@pytest.fixture(params=["every pair", "inverted lists"])
def search(request, monkeypatch):
    """Options of a curation. Of the inverted lists that so few images allow a search visits one, and misses some."""
    if request.param == "every pair":
        return PIXELS
    monkeypatch.setattr(pool_parts, "FLAT_ROWS", 0)
    monkeypatch.setattr(
        index_stages, "choose_index", lambda rows, *_, **__: IndexSettings("IVF3,Flat" if rows > 3 else "Flat")
    )
    return {**PIXELS, "index_probes": 1}


def test_only_new_images_are_searched_for(folder, search):
    """Among all, and by an index of their own: what the search among earlier sources found and made is kept."""
    write_scenes(folder / "e", [2, *range(30, 34)])
    benchmark = {"benchmarks": [str(folder / "benchmark")]}
    names = ["search_copies", "search_benchmarks"]
    before = {}
    for pools in ("a", "ab", "abe"):
        grown = run(folder, "grown", pools, **search, **benchmark)
        found = {name: {path.stat().st_ino for path in grown.folders[name].files("edges.npz")} for name in names}
        for name, shards in before.items():
            assert shards <= found[name]
            assert len(found[name] - shards) == 2
        before = found
        assert results(grown) == results(run(folder, f"at_once_{pools}", pools, **search, **benchmark))
    assert not list((folder / "grown" / "stages").glob("*/kept-*"))


def test_a_source_that_came_last_goes_without_a_search(folder, search):
    both = run(folder, "shrunk", "ab", **search)
    before = {path.stat().st_ino for path in both.folders["search_copies"].files("edges.npz")}
    alone = run(folder, "shrunk", "a", **search, overwrite=True)
    assert {path.stat().st_ino for path in alone.folders["search_copies"].files("edges.npz")} < before
    assert results(alone) == results(run(folder, "at_once", "a", **search))


def test_a_source_as_large_as_its_group_is_indexed_with_it(folder, search):
    """Then all is searched again, and the dataset is still that of one run. Without an index nothing is."""
    write_scenes(folder / "d", range(30, 50))
    before = made(run(folder, "grown", "a", **search), "search_copies")
    grown = run(folder, "grown", "ad", **search)
    assert results(grown) == results(run(folder, "at_once", "ad", **search))
    assert bool(before & made(grown, "search_copies")) == ("index_probes" not in search)
    assert grown.folders["copies_merge_index"].num_shards == 1


def test_every_pair_of_the_sources_is_found_once_at_least(folder):
    curation = run(folder, "out", "abc", **PIXELS, num_neighbors=30)
    vectors = curation.pool_vectors().read(0, len(curation.pool_vectors()))
    edges = load_edges(curation.folders["search_copies"])
    pairs = {tuple(sorted(pair)) for pair in zip(edges.rows.tolist(), edges.others.tolist(), strict=True)}
    cosines = np.triu(vectors @ vectors.T, 1)
    assert pairs == set(zip(*(places.tolist() for places in np.nonzero(cosines > 0.45)), strict=True))
    histogram = json.loads((curation.output_dir / "report.json").read_text())["histograms"]
    nearest = np.maximum(cosines, cosines.T).max(axis=1)
    assert histogram["Nearest other image of the pool"]["above"] == (nearest > 0.6).sum()
    assert histogram["Nearest other image of the pool"]["floor"] == 0.45


def test_only_sources_may_come_without_being_told_to_overwrite(folder):
    run(folder, "out", "a")
    with pytest.raises(ValueError, match="sources have come .* .b., .* the earlier run had min_side = None,"):
        run(folder, "out", "ab", min_side=20)
    with pytest.raises(ValueError, match="had deduplication_threshold = 0.6, which is now 0.7. Take"):
        run(folder, "out", "ab", deduplication_threshold=0.7)
    shutil.copy2(folder / "b" / "large.png", folder / "a")
    with pytest.raises(ValueError, match="the sources a, which are now a, b; .*--overwrite, which keeps"):
        run(folder, "out", "ab")


def test_a_change_of_the_filters_reads_all_images_again(folder):
    before = made(run(folder, "out", "a"), "ingest")
    again = run(folder, "out", "ab", min_side=20, overwrite=True)
    assert not before & made(again, "ingest")
    assert not list((folder / "out" / "stages").glob("*/kept-*"))


def test_an_interrupted_increment_goes_on(folder):
    before = made(run(folder, "grown", "a"), "ingest", "describe")
    values = {"uncurated": [str(folder / "a"), str(folder / "b")], "output_dir": str(folder / "grown")}
    curate(CurationArguments(**values, num_shards=2, progress=False), "ingest")
    kept = sorted((folder / "grown" / "stages" / "describe").glob("kept-*"))
    assert len(kept) == 2
    manifest = json.loads((kept[0] / "manifest.json").read_text())
    (kept[0] / "vectors.npy").write_bytes(b"cut")  # a disk that was full; it is made again
    assert manifest["files"]["vectors.npy"]["bytes"] > 3
    grown = run(folder, "grown", "ab")
    assert results(grown) == results(run(folder, "at_once", "ab"))
    assert len(before - made(grown, "ingest", "describe")) == 2  # vectors.npy and rows.npy of that shard


def test_code_of_the_users_is_known_by_its_file(tmp_path, monkeypatch):
    """A filter that was edited under its name reads all images again; so does an embedder."""
    write_scenes(tmp_path / "a", range(4))
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "code_of_the_user.py"
    code.write_text("def width(images, columns): return columns['width']\n")
    changes = {"filters": ["code_of_the_user:width"], "embedder": f"{__name__}:small_pixels"}
    run(tmp_path, "out", "a", **changes)
    run(tmp_path, "out", "a", **changes)
    code.write_text("def width(images, columns): return columns['height']\n")
    with pytest.raises(ValueError, match="stage 'ingest' in .* was made with code_of_filters = "):
        run(tmp_path, "out", "a", **changes)
