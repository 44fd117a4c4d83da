"""The ground truth of the revisited buildings as files that the retrieval protocol reads."""

import pickle
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests import forked_python


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
    command = [SCRIPT, tmp_path / "gnd.pkl", tmp_path / "jpg", tmp_path / "out"]
    assert forked_python.run(command).returncode == 0
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
    result = forked_python.run(command)
    assert result.returncode == 1
    assert "error: 1 of 3 images are missing, such as" in result.stderr


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path, protocol):
    witness = tmp_path / "it ran"
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps({"imlist": [], "gnd": Runs(witness)}, protocol))
    command = [SCRIPT, tmp_path / "gnd.pkl", tmp_path, tmp_path / "out"]
    result = forked_python.run(command)
    assert result.returncode == 1
    assert result.stderr.endswith(
        "gnd.pkl cannot be read: it asks for "
        + ("__builtin__" if protocol == 2 else "builtins")
        + ".exec, but only plain data is read.\n"
    )
    assert not witness.exists()
    (tmp_path / "gnd.pkl").write_bytes(b"junk")
    result = forked_python.run(command)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_numbers_and_bytes_are_read_from_pickles_of_every_protocol(tmp_path, protocol):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        from write_revisited import read_ground_truth
    finally:
        sys.path.pop(0)
    truth = {
        "gnd": [{"easy": np.arange(3), "junk": np.int64(3), "bbx": np.float32(1.5)}],
        "imlist": [b"a"],
        "qimlist": [],
    }
    (tmp_path / "gnd.pkl").write_bytes(pickle.dumps(truth, protocol))
    found = read_ground_truth(tmp_path / "gnd.pkl")
    assert found["gnd"][0]["easy"].tolist() == [0, 1, 2]
    assert (found["gnd"][0]["junk"], found["gnd"][0]["bbx"], found["imlist"]) == (3, 1.5, [b"a"])
