"""A user's own modules: `extensions/` is where Python looks, here and in processes that are started."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.examples.conftest import TINY, forget_accelerate, load_example, no_pictures  # noqa: F401  (a fixture)


EXTENSIONS = Path(__file__).parent / "extensions"


@pytest.fixture(autouse=True)
def modules_of_the_user(monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXTENSIONS), *filter(None, sys.path)]))


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """8 noisy PNG files, 6 in the class folder `many` and 2 in `few`."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(8):
        path = folder / ("few" if index < 2 else "many") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def pretrain(images, tmp_path):
    """Calls a pretraining of 2 steps with further lines of the recipe, and gives its output folder."""

    def run(lines: str = "", *flags: str) -> Path:
        recipe, output_dir = tmp_path / "recipe.yaml", tmp_path / "run"
        recipe.write_text(f"{TINY}{lines}\n")
        forget_accelerate()
        load_example("pretrain").main(
            ["--config", str(recipe), "--train_data", str(images), "--output_dir", str(output_dir), "--max_steps", "2",
             "--warmup_steps", "1", "--teacher_temperature_warmup_steps", "1", *flags]
        )  # fmt: skip
        return output_dir

    return run
