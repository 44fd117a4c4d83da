"""The benchmark of the first pass runs in small and writes its numbers."""

import json

from .conftest import load_example


def test_a_few_pictures(tmp_path):
    output = tmp_path / "first_pass.json"
    words = ["--images", "4", "--width", "160", "--height", "120", "--output", str(output)]
    load_example("benchmarks/first_pass").main(words)
    assert set(json.loads(output.read_text())["cpu_milliseconds_of_an_image"]) == {"ingest", "embed"}
