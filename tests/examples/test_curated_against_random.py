"""The benchmark that makes four subsets of one pool: what they are made of."""

import json

import datasets

from tests.curation.scenes import encoded, scene
from tests.examples.conftest import EXAMPLES


def test_four_subsets_of_one_pool(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    import curated_against_random

    wanted = [{"bytes": encoded(scene(seed)), "path": None} for seed in range(20)]
    _write({"image": wanted, "label": [number % 2 for number in range(20)]}, tmp_path / "wanted.parquet")
    others = [{"bytes": encoded(scene(seed, width=150)), "path": None} for seed in range(20, 50)]
    _write({"image": others}, tmp_path / "others.parquet")
    flags = ["--wanted", str(tmp_path / "wanted.parquet"), "--others", str(tmp_path / "others.parquet")]
    flags += ["--output_dir", str(tmp_path / "out"), "--queries_per_class", "2", "--rare_classes", "1"]
    flags += ["--max_wanted", "16", "--rare_share", "0.5", "--copied", "2", "--copies", "3", "--broken", "2"]
    record = curated_against_random.main([*flags, "--num_neighbors", "3"])

    assert record == json.loads((tmp_path / "out" / "composition.json").read_text())
    # Of 8 wanted ones of each class 2 are queries. 6 of one class and 3 of the other are in the pool, and four times
    # as many others. Two pictures have three copies each.
    pool = record["pool"]
    assert pool["wanted"] + pool["other"] == 9 + 36 + 6
    assert (pool["broken"], pool["different pictures"]) == (2, 45)
    # Broken files are in none of the subsets, and deduplication leaves fewer than there are.
    assert record["random"]["of"] == 51 > record["copies_out"]["of"]
    assert record["retrieved"]["of"] >= record["curated"]["of"] == record["images"]
    for name in ("random", "copies_out", "retrieved", "curated"):
        file = datasets.Dataset.from_parquet(str(tmp_path / "out" / f"{name}.parquet"))
        assert len(file) == record["images"]
        assert "broken" not in file["what"]


def _write(rows: dict, path) -> None:
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(path)
