"""Originals and edited copies of them, in a form that copy detection reads."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from tests import forked_python


SCRIPT = Path(__file__).parents[2] / "examples" / "write_copies.py"


def test_copies_have_the_label_of_their_original(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        pixels = rng.integers(0, 255, size=(30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    command = [SCRIPT, tmp_path / "images", tmp_path / "out", "--num_copies", "3"]
    assert forked_python.run(command).returncode == 0
    originals, queries = (
        datasets.Dataset.from_parquet(str(tmp_path / "out" / f"{name}.parquet"), cache_dir=str(tmp_path / "cache"))
        for name in ("originals", "queries")
    )
    labels = originals["label"][:]
    assert len(set(labels)) == 4
    assert queries["label"][:] == [*labels[:3], None, None, None]
    assert all(image.size == (224, 224) for image in queries["image"])
