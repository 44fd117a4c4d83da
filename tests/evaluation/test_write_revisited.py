"""The ground truth of the revisited buildings as files that the retrieval protocol reads."""

import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


SCRIPT = Path(__file__).parents[2] / "examples" / "write_revisited.py"


def test_lists_and_boxes_come_with_their_images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "jpg").mkdir()
    for name in ("a", "b", "c", "q"):
        Image.fromarray(rng.integers(0, 255, size=(24, 32, 3), dtype=np.uint8)).save(tmp_path / "jpg" / f"{name}.jpg")
    truth = {
        "imlist": ["a", "b", "c"],
        "qimlist": ["q"],
        "gnd": [{"bbx": [1.5, 2, 30, 20], "easy": np.array([2]), "hard": np.array([], int), "junk": np.array([0, 1])}],
    }
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truth))
    command = [sys.executable, SCRIPT, tmp_path / "gnd.pkl", tmp_path / "jpg", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    database, queries = (
        datasets.Dataset.from_parquet(str(tmp_path / "out" / f"{name}.parquet"), cache_dir=str(tmp_path / "cache"))
        for name in ("database", "queries")
    )
    assert len(database) == 3
    stored = database.cast_column("image", datasets.Image(decode=False))[1]["image"]["bytes"]
    assert stored == (tmp_path / "jpg" / "b.jpg").read_bytes()
    query = queries[0]
    assert query["image"].size == (32, 24)
    assert {name: query[name] for name in ("bbx", "easy", "hard", "junk")} == {
        "bbx": [1.5, 2, 30, 20], "easy": [2], "hard": [], "junk": [0, 1]
    }  # fmt: skip

    (tmp_path / "jpg" / "c.jpg").unlink()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: 1 of 3 images are missing, such as" in result.stderr
