from pathlib import Path

import datasets
import numpy as np

from tests import forked_python


SCRIPT = Path(__file__).parents[2] / "examples" / "write_digits.py"


def test_digits_are_written_as_images_with_labels(tmp_path):
    result = forked_python.run([SCRIPT, tmp_path / "digits"])
    assert len(result.stdout.splitlines()) == 2
    splits = datasets.load_dataset(
        "parquet",
        data_files={name: str(tmp_path / "digits" / f"{name}.parquet") for name in ("train", "test")},
        cache_dir=str(tmp_path / "cache"),
    )
    assert {name: len(split) for name, split in splits.items()} == {"train": 1297, "test": 500}
    contents = {}
    for name, split in splits.items():
        assert split.features["image"] == datasets.Image()
        assert split.features["label"] == datasets.ClassLabel(names=list("0123456789"))
        assert np.bincount(split["label"]).min() > 0.09 * len(split)
        contents[name] = {np.asarray(image).tobytes() for image in split["image"]}
    image = splits["test"][0]["image"]
    assert (image.mode, image.size) == ("L", (16, 16))
    assert not contents["train"] & contents["test"]
