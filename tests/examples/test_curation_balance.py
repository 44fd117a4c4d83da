"""The benchmark of balance, with vectors that know the class."""

import json

import datasets
import numpy as np
import pytest

from tests.curation.scenes import encoded, scene
from tests.examples.conftest import EXAMPLES


def test_entropy_before_and_after(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    import curation_balance

    labels = np.arange(40) % 2
    rows = {"image": [{"bytes": encoded(scene(seed)), "path": None} for seed in range(40)], "label": labels}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "images.parquet")
    flags = ["--images", str(tmp_path / "images.parquet"), "--output_dir", str(tmp_path / "out")]
    flags += ["--rare_classes", "1", "--rare_share", "0.25", "--queries_per_class", "4", "--num_neighbors", "4"]

    # 16 images of class 0, 4 of class 1, 8 queries; each image has its class and a little of its own.
    of_rows = [0] * 16 + [1] * 4
    pool = np.array(curation_balance.split(labels, _arguments())[0])
    assert np.bincount(labels[pool]).tolist() == [16, 4]
    vectors = np.zeros((28, 30), np.float32)
    queries = curation_balance.split(labels, _arguments())[1]
    vectors[np.arange(28), np.concatenate([labels[pool], labels[queries]])] = 1
    vectors[np.arange(28), 2 + np.arange(28)] = 1
    np.save(tmp_path / "vectors.npy", vectors)
    record = curation_balance.main([*flags, "--embedder", str(tmp_path / "vectors.npy")])
    assert record == json.loads((tmp_path / "out" / "balance.json").read_text())
    assert record["pool"]["images_of_class"] == np.bincount(of_rows).tolist()
    assert record["pool"]["entropy"] == pytest.approx(-(0.8 * np.log(0.8) + 0.2 * np.log(0.2)))
    # Four neighbours of the same class for each query, the same four where there are no others.
    assert record["curated"]["images_of_class"] == [4, 4]
    assert record["curated"]["entropy"] == pytest.approx(np.log(2))
    assert record["random"]["images"] == record["curated"]["images"]


def _arguments():
    from types import SimpleNamespace

    return SimpleNamespace(queries_per_class=4, rare_classes=1, images_per_class=5000, rare_share=0.25)
