"""The benchmark of the evaluation runs on small numbers and writes them."""

import json
import sys

from .conftest import load_example


def test_every_part(tmp_path, monkeypatch):
    output = tmp_path / "evaluation.json"
    benchmark = load_example("benchmarks/evaluation")
    tiny = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    monkeypatch.setitem(benchmark.ARCHITECTURES, "small", tiny)
    # A child process would not see the small network, and its memory says nothing at this size.
    monkeypatch.setattr(benchmark, "in_a_process", lambda *_: 1.0)
    words = [
        "--bank_size",
        "600",
        "--num_queries",
        "40",
        "--feature_size",
        "24",
        "--rounds",
        "1",
        "--image_size",
        "28",
    ]
    words += ["--num_images", "6", "--batch_size", "4", "--device", "cpu", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *words])
    benchmark.main()
    results = json.loads(output.read_text())
    assert set(results["knn"]["seconds"]) == {"ours", "as the original", "faiss flat"}
    assert results["knn"]["time_over_ours"]["ours"] == 1
    assert 0 < results["extraction"]["share_of_time_waiting_for_images"] < 1
    for kind in ("with_the_backbone", "from_cached_features"):
        assert results["grid"][kind]["time_of_52_over_1"] > 0
