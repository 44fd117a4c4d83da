"""The curation benchmark runs in small and writes its numbers."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from dinov2_hf import DINOv2Config, DINOv2ImageProcessor, DINOv2Model

from .conftest import EXAMPLES, load_example


@pytest.fixture(scope="module")
def main():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES / "benchmarks")  # it imports its neighbours
        yield load_example("benchmarks/curation").main


def test_deduplication_of_two_sizes(main, tmp_path):
    output = tmp_path / "scale.json"
    for rows in (1000, 2000):
        flags = ["--rows", str(rows), "--factory", "IVF16,Flat", "--num_probes", "16", "--training_rows", "800"]
        main(["deduplicate", *flags, "--output", str(output), "--scratch", str(tmp_path)])
    results = json.loads(output.read_text())
    for record in results["deduplicate"]:
        # A tenth of the rows are planted copies: all are found, and nothing else goes.
        assert record["deduplicate"]["dropped"] == record["rows"] // 10
        assert record["deduplicate_against"]["references_found"] > 350  # copies of 500 rows, some of them twice
        assert record["retrieved"]["multiset"] == 4000
    assert set(results["growth_exponents_of_deduplicate"]) == set(results["deduplicate"][0]["seconds"])
    assert [path.name for path in tmp_path.iterdir()] == ["scale.json"]


def test_clustering_recall_and_speed(main, tmp_path):
    output = tmp_path / "scale.json"
    flags = ["--rows", "1000", "--output", str(output), "--scratch", str(tmp_path)]
    main(["cluster", *flags])
    for run in ("recall", "beside_faiss"):
        main([run, *flags, "--factory", "IVF16,Flat", "--num_probes", "16", "--training_rows", "800"])
    results = json.loads(output.read_text())
    assert results["beside_faiss"][0]["ratio"]["faiss, candidates alone"] == 1
    assert len(results["beside_faiss"][0]["ratio"]) == 3
    assert results["cluster"][0]["num_clusters"] == 10
    searches = results["recall"][0]["searches"]
    assert searches["all 64 neighbours"]["recall"] > 0.999
    assert searches["edges above 0.6"]["recall"] == 1


@pytest.fixture
def photographs(tmp_path):
    """A parquet file of smooth pictures: noise of 8 x 8 pixels, enlarged."""
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
        for _ in range(6)
    ]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "images.parquet")
    return str(tmp_path / "images.parquet")


def test_recall_among_crops_of_photographs(main, photographs, tmp_path):
    config = DINOv2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    DINOv2Model(config).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor().save_pretrained(tmp_path / "model")
    output = tmp_path / "recall.json"
    index = ["--factory", "IVF4,Flat", "--training_rows", "160"]
    main(
        ["recall", "--images", photographs, "--model", str(tmp_path / "model"), "--rows", "1200", *index]
        + ["--output", str(output)]
    )
    (record,) = json.loads(output.read_text())["recall"]
    assert (record["rows"], record["width"], record["vectors"]) == (1200, 32, "model of crops")
    found = record["searches"]["all 64 neighbours"]
    assert found["num_probes"] == 4  # all lists: of so few any share is reached by no less
    assert found["recall"] > 0.99
    assert found["recall_of_the_sample"]["measured"] > 0.99


def test_crops_are_described_without_a_network(main, photographs, tmp_path):
    """Those of one photograph are nearer to each other than to others."""
    from crop_vectors import crop_store

    store = crop_store(tmp_path / "vectors", [photographs], None, 600, "image")
    vectors = store.read(0, 600)
    assert vectors.shape == (600, 384)
    photograph = np.empty(600, int)
    places = np.random.default_rng(0).permutation(600)
    for number in range(6):
        photograph[places[number::6]] = number
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    assert (photograph[cosines.argmax(axis=1)] == photograph).mean() > 0.9


def test_planted_copies(main, photographs, tmp_path):
    output = tmp_path / "copies.json"
    main(["copies", "--images", photographs, "--copied", "3", "--output", str(output)])
    (record,) = json.loads(output.read_text())["copies"]
    assert (record["originals"], record["copied"]) == (6, 3)
    assert len(record["transforms"]) == 17
    assert record["transforms"]["JPEG, quality 90"]["0.6"]["recall"] == 1
    assert record["transforms"]["JPEG, quality 90"]["nearest_is_own"] == 1


@pytest.mark.parametrize("embedder", ["perceptual", "recall_of_copies:last_layer"])
def test_recall_of_copies(main, photographs, tmp_path, embedder):
    output = tmp_path / "copies.json"
    flags = ["--embedder", embedder, "--held_out", "2", "--false_rate", "0.01"]
    main(["recall_of_copies", "--images", photographs, *flags, "--output", str(output)])
    (record,) = json.loads(output.read_text())["recall_of_copies"]
    assert record["unlike_pairs"] == 17 * 2 * 5
    assert record["recall_of_transforms"]["JPEG, quality 90"] == 1
    assert record["recall"] == pytest.approx(np.mean(list(record["recall_of_transforms"].values())))
