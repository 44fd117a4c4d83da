"""The benchmark of a curation that grows runs in small, and the grown dataset is that of one run."""

import json

from .conftest import load_example


def test_a_few_images(tmp_path):
    output = tmp_path / "growth.json"
    load_example("benchmarks/curation_growth").main(["--images", "12", "--added", "4", "--output", str(output)])
    record = json.loads(output.read_text())
    assert record["same"]
    assert len(record["runs"]) == 3
