"""`dinov2-hf evaluate` under accelerate launch: two processes share the images, and measure what one does."""

import json

import datasets
import pytest
from PIL import Image
from transformers import AutoModelForImageClassification

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.cli import main
from dinov2_hf.output_folders import sole_writer
from tests import forked_python
from tests.evaluation.coloured_images import COLOURS, coloured_rows

from .conftest import CONFIGS, environment


@pytest.fixture
def words(tmp_path, tiny_config, spread):
    spread(DINOv2Model(tiny_config)).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "model"
    )
    names = list(COLOURS)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    # Wrong labels, so that accuracies are not all 1; rows that do not divide by processes and batches.
    for part, per_class in (("train", 7), ("test", 3)):
        rows = coloured_rows(names, per_class, len(part))
        rows = [{**row, "label": names[(index * index) % 5]} for index, row in enumerate(rows[:-1])]
        if part == "train":
            rows[4]["image"] = {"bytes": b"no image", "path": None}
        datasets.Dataset.from_list(rows, features).to_parquet(tmp_path / f"{part}.parquet")
    words = ["evaluate", "--model", tmp_path / "model", "--protocol", "knn,linear,logistic_regression"]
    words += ["--train_data", tmp_path / "train.parquet", "--eval_data", tmp_path / "test.parquet", "--batch_size", 4]
    words += ["--knn_ks", 1, 7, "--knn_shots", 2, "--linear_num_layers", 1, 2, "--linear_num_steps", 12]
    words += ["--logistic_regression_num_cs", 3, "--logistic_regression_log10_c_range", -2, 1]
    return [str(word) for word in words]


def test_two_processes_measure_what_one_does(tmp_path, words, free_port):
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", str(free_port), "-m", "dinov2_hf.cli"]
    of_two = ["--output_dir", str(tmp_path / "two"), "--linear_train_batch_size", "8"]
    finished = forked_python.run([*launch, *words, *of_two], env=environment("ddp"))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.count("metrics.json") == 1  # the main process speaks alone

    main([*words, "--output_dir", str(tmp_path / "one"), "--linear_train_batch_size", "16"])
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    for protocol, found in one["protocols"].items():
        assert two["protocols"][protocol]["metrics"] == pytest.approx(found["metrics"], abs=1e-9), protocol
    assert any(0 < value < 1 for value in one["protocols"]["knn"]["metrics"].values())
    grids = [json.loads((tmp_path / name / "linear" / "grid.json").read_text()) for name in ("one", "two")]
    assert grids[0] == grids[1]
    heads = [
        AutoModelForImageClassification.from_pretrained(tmp_path / name / "linear" / "model")
        for name in ("one", "two")
    ]
    for name, tensor in heads[0].state_dict().items():
        assert (tensor - heads[1].state_dict()[name]).abs().max() < 1e-5
    assert Image.open(tmp_path / "two" / "knn" / "knn.png").width > 300


def test_an_undecodable_image_to_classify_ends_both(tmp_path, words, free_port):
    rows = datasets.Dataset.from_parquet(str(tmp_path / "test.parquet")).cast_column(
        "image", datasets.Image(decode=False)
    )
    broken = [
        {**row, "image": {"bytes": b"no", "path": None}} if index == 6 else row for index, row in enumerate(rows)
    ]
    datasets.Dataset.from_list(broken, rows.features).cast_column("image", datasets.Image()).to_parquet(
        tmp_path / "test.parquet"
    )
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", str(free_port), "-m", "dinov2_hf.cli"]
    words = [*words[:4], "knn", *words[5:11], "--knn_ks", "1", "--output_dir", str(tmp_path / "out")]
    finished = forked_python.run([*launch, *words], env=environment("ddp"))
    assert finished.returncode != 0
    assert "of row 6 cannot be decoded" in finished.stderr


def test_a_refusal_of_the_main_process_ends_both(tmp_path, words, free_port):
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    launch += ["--num_processes", "2", "--main_process_port", str(free_port), "-m", "dinov2_hf.cli"]
    words = [*words[:4], "knn", *words[5:11], "--knn_ks", "1", "--output_dir", str(tmp_path / "out")]
    with sole_writer(tmp_path / "out"):
        finished = forked_python.run([*launch, *words], env=environment("ddp"))
    assert finished.returncode != 0
    assert "is being written by another process" in finished.stderr
    assert not (tmp_path / "out" / "metrics.json").exists()
