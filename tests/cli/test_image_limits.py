"""Every command goes on without an image that is beyond the limits, and says which it was."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.cli import main
from dinov2_hf.data.decoding.size_limits import VARIABLE, max_image_pixels
from tests.data.decoding.test_size_limits import png_of, tiff_of
from tests.examples.conftest import TINY, forget_accelerate, load_example


HOSTILE = {
    "long.png": (png_of(100_000, 1), "one side may be at most 100 times the other"),
    "large.png": (png_of(20_000, 20_000), "--max_image_pixels"),
    "loop.tif": (tiff_of(20, 20, next_page=8), ""),
    "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
    "medium.png": (None, "6400 that `--max_image_pixels` allows"),
}


@pytest.fixture(autouse=True)
def own_limit(monkeypatch):
    monkeypatch.setenv(VARIABLE, "178956970")


@pytest.fixture
def photos(tmp_path):
    """Of each of two classes 8 images of 40 x 40 pixels, and in the first the hostile files and one of 90 x 90."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    for name, (content, _) in HOSTILE.items():
        if content is not None:
            (tmp_path / "photos" / "a" / name).write_bytes(content)
    pixels = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a" / "medium.png")
    os.mkfifo(tmp_path / "photos" / "b" / "pipe.png")
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path, tiny_config, spread):
    spread(DINOv2Model(tiny_config)).save_pretrained(tmp_path / "model")
    sizes = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    DINOv2ImageProcessor(**sizes).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*words) -> None:
    main([str(word) for word in words])


def test_features(photos, model, tmp_path, capfd):
    run("features", model, "--data", photos, "--output", tmp_path / "f.npy", "--max_image_pixels", 6400)
    assert np.isfinite(np.load(tmp_path / "f.npy")).all(axis=1).sum() == 16
    printed, told = capfd.readouterr()
    assert "f.npy: 22 rows of shape (32,), 6 of them NaN" in printed
    for name, (_, reason) in HOSTILE.items():
        assert reason in told
        assert f"cannot be decoded: {photos / 'a' / name}: " in told
    assert "pipe.png is not a regular file" in told
    run("features", model, "--data", photos, "--output", tmp_path / "g.npy", "--max_image_pixels", 8100)
    assert np.isfinite(np.load(tmp_path / "g.npy")).all(axis=1).sum() == 17


def test_evaluate(photos, model, tmp_path, caplog):
    good = tmp_path / "good"
    for name in "ab":
        (good / name).mkdir(parents=True)
        (good / name / "0.png").write_bytes((photos / name / "0.png").read_bytes())
    words = ["--protocol", "knn", "--knn_ks", "1", "--train_data", photos, "--eval_data", good]
    words += ["--eval_split", "train", "--output_dir", tmp_path / "out", "--device", "cpu"]
    run("evaluate", "--model", model, *words, "--max_image_pixels", 6400)
    assert "6 training images cannot be decoded and are left out: rows 8, 9, 10, 11, 12, ..." in caplog.text


def test_curate(photos, tmp_path):
    from pyarrow import parquet

    run("curate", "--uncurated", photos, "--output_dir", tmp_path / "out", "--max_image_pixels", 6400, "--no-progress")
    rows = parquet.read_table(tmp_path / "out" / "dropped.parquet").to_pylist()
    reasons = {os.path.basename(row["path"]): row["reason"] for row in rows if row["stage"] == "ingest"}
    assert sorted(reasons) == sorted([*HOSTILE, "pipe.png"])
    for name, (_, reason) in HOSTILE.items():
        assert reason in reasons[name]
    assert max_image_pixels() == 178956970  # the limit of a curation is not that of what its process does next


def test_models_of_a_curation_are_tried_on_a_picture_within_the_limit(photos, model, tmp_path):
    words = ["--uncurated", photos, "--output_dir", tmp_path / "out", "--embedder", model, "--no-progress"]
    run("curate", *words, "--max_image_pixels", 2000, "--device", "cpu")
    assert (tmp_path / "out" / "report.html").exists()


def test_pretraining_goes_on(photos, tmp_path):
    (tmp_path / "recipe.yaml").write_text(TINY)
    forget_accelerate()
    options = {"train_data": photos, "output_dir": tmp_path / "out", "max_image_pixels": 6400, "max_steps": 4}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--max_skipped_fraction", "0.9"]
    load_example("pretrain").main(["--config", str(tmp_path / "recipe.yaml"), *words])
    lines = (tmp_path / "out" / "skipped_images.jsonl").read_text().splitlines()
    reasons = {os.path.basename(json.loads(line)["row_id"]): json.loads(line)["reason"] for line in lines}
    assert any("one side may be" in reason or "--max_image_pixels" in reason for reason in reasons.values())
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["max_image_pixels"] == 6400
