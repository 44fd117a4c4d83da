"""The benchmark of listings runs in small and writes its numbers."""

import json

from .conftest import load_example


def test_a_few_files(tmp_path):
    output = tmp_path / "listing.json"
    load_example("benchmarks/source_listing").main(["--files", "1200", "--output", str(output)])
    record = json.loads(output.read_text())
    assert record["files"] == 1200
    assert "open the sources for a shard" in record["cpu_seconds"]
