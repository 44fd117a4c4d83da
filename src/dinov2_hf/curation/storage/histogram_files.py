"""The histogram of a stage: `histogram.json` in each shard. The report shows it for every stage that writes it."""

import json
from dataclasses import asdict
from pathlib import Path

from ..algorithms.histograms import Histogram, sum_of_histograms
from .manifests import StageFolder


FILE = "histogram.json"


def save_histogram(counts: Histogram, folder: Path) -> None:
    """Write it to the folder of a shard."""
    (folder / FILE).write_text(json.dumps(asdict(counts)))


def load_histogram(stage: StageFolder) -> Histogram | None:
    """The histogram of all shards together; None if the stage does not write one."""
    found = [Histogram(**json.loads(path.read_text())) for path in stage.files(FILE) if path.exists()]
    return sum_of_histograms(found) if found else None
