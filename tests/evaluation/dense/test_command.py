"""`dinov2-hf evaluate` with the dense protocols, as it is typed."""

import json

import pytest

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.cli import main
from tests.evaluation.dense.data import banded_images


@pytest.fixture
def words(tmp_path, tiny_config) -> list[str]:
    DINOv2Model(tiny_config).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor().save_pretrained(tmp_path / "model")
    for name, count in (("train", 8), ("test", 3)):
        banded_images(count).to_parquet(tmp_path / f"{name}.parquet")
    words = [
        "evaluate", "--model", "model", "--train_data", "train.parquet", "--eval_data", "test.parquet", "--output_dir",
        "out",
    ]  # fmt: skip
    return [str(tmp_path / word) if (tmp_path / word).exists() or word == "out" else word for word in words]


def test_segmentation_and_depth(words, tmp_path, capsys):
    options = (
        "--protocol segmentation,depth --segmentation_class_names red green blue --segmentation_image_size 32"
        " --segmentation_num_steps 3 --segmentation_train_batch_size 4 --depth_scale 1000 --depth_max_depth 5"
        " --depth_crop_size 32 40 --depth_num_steps 3 --depth_train_batch_size 4 --depth_column depth_map"
    )
    main([*words, *options.split()])
    table = capsys.readouterr().out
    protocols = json.loads((tmp_path / "out" / "metrics.json").read_text())["protocols"]
    assert protocols["segmentation"]["options"]["class_names"] == ["red", "green", "blue"]
    for protocol, metric in (("segmentation", "segmentation_miou"), ("depth", "depth_rmse")):
        assert f"| {metric} " in table
        assert 0 <= protocols[protocol]["metrics"][metric] < 5
        for file in (f"{protocol}.png", "model/config.json", "model/preprocessor_config.json"):
            assert (tmp_path / "out" / protocol / file).is_file()


def test_mistakes_are_one_sentence(words):
    with pytest.raises(
        SystemExit, match="error: `--depth_column` 'depth_map' of the training data holds depths from 1000"
    ):
        main([*words, "--protocol", "depth", "--depth_crop_size", "32", "40", "--depth_train_batch_size", "4"])
