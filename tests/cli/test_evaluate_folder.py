"""The output folder of `dinov2-hf evaluate`: finished work stays, and mistakes are named before any work."""

import json
import sys

import pytest
import torch
from PIL import Image

from dinov2_hf import DINOv2Model
from dinov2_hf.evaluation import segmentation
from dinov2_hf.output_folders import read_marker, sole_writer
from tests.cli.typed_commands import mistake, run
from tests.evaluation.coloured_images import COLOURS, coloured_dataset
from tests.evaluation.dense.data import banded_images


QUICK = {
    "knn": ("--knn_ks", 1, 3),
    "linear": ("--linear_cache_features", "--linear_num_steps", 5, "--linear_train_batch_size", 8),
    "segmentation": (
        "--segmentation_image_size", 32, "--segmentation_num_steps", 3, "--segmentation_train_batch_size", 4,
    ),
}  # fmt: skip


@pytest.fixture
def words(tmp_path, folder):
    """From protocols, options and the name of the output folder to the words of the command."""
    names = list(COLOURS)[:3]
    for part, per_class in (("train", 5), ("test", 2)):
        coloured_dataset(names, per_class, len(part)).to_parquet(tmp_path / f"{part}.parquet")
        banded_images(8).to_parquet(tmp_path / f"masks_{part}.parquet")

    def words(protocol, *options, output="out", data=""):
        """Options that are given count, and not the quick ones."""
        quick = [] if "--knn_ks" in options else [word for name in protocol.split(",") for word in QUICK.get(name, ())]
        return [
            "evaluate", "--model", folder, "--protocol", protocol, "--output_dir", tmp_path / output,
            "--train_data", tmp_path / f"{data}train.parquet", "--eval_data", tmp_path / f"{data}test.parquet",
            *quick, *options,
        ]  # fmt: skip

    return words


def results(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())["protocols"]


def test_protocols_are_added_and_finished_ones_are_kept(tmp_path, words, capsys):
    output = tmp_path / "out"
    run(*words("knn"))
    first = results(output)
    assert read_marker(output)["kind"] == "evaluation"
    (output / "knn" / "knn.png").unlink()
    run(*words("knn,linear"))
    both = results(output)
    assert list(both) == ["knn", "linear"]
    assert both["knn"] == first["knn"]
    assert not (output / "knn" / "knn.png").exists()  # it was not measured again
    assert "knn: measured already" in capsys.readouterr().out

    run(*words("knn", "--overwrite", "--knn_ks", 2))
    again = results(output)
    assert again["linear"] == both["linear"]
    assert list(again["knn"]["metrics"]) == ["knn_top1_k2"]
    assert (output / "knn" / "knn.png").exists()


def test_other_options_another_model_or_other_data_are_refused(tmp_path, words):
    run(*words("knn"))
    before = (tmp_path / "out" / "metrics.json").read_text()
    answer = mistake(*words("knn", "--knn_ks", 2))
    assert "holds knn with other options (`--knn_ks` 1 3; now `--knn_ks` 2)" in answer
    assert "`--bf16` False; now `--bf16` True" in mistake(*words("knn", "--bf16"))
    assert "`--train_split` train, and these would be with train[:9]" in mistake(
        *words("linear", "--train_split", "train[:9]")
    )
    assert "`--baseline` None" in mistake(*words("linear", "--baseline", "untrained", "--overwrite"))
    model = DINOv2Model.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        model.layernorm.bias.add_(1)
    model.save_pretrained(tmp_path / "model")
    assert "the weights of" in mistake(*words("linear"))
    assert (tmp_path / "out" / "metrics.json").read_text() == before


def test_a_run_stands_for_its_model(tmp_path, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "model").rename(tmp_path / "run" / "model")
    words = [tmp_path / "run" if word == tmp_path / "model" else word for word in words("knn", "--update_card")]
    run(*words[:6], tmp_path / "run" / "evaluation", *words[7:])
    assert results(tmp_path / "run" / "evaluation")["knn"]["metrics"]
    assert "knn_top1_k1" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_one_writer_for_a_folder(tmp_path, words):
    run(*words("knn"))
    with sole_writer(tmp_path / "out"):
        assert "is being written by another process" in mistake(*words("linear"))
    run(*words("linear"))
    assert list(results(tmp_path / "out")) == ["knn", "linear"]


def test_folders_of_others_and_sources_stay_as_they_are(tmp_path, words):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for output, message in (
        ("mine", "holds files but no evaluation"),
        ("model", "is the same as the source"),
        ("model/evaluation", "is inside the source"),
        ("file", "a file, but a folder is needed"),
        ("file/out", "is a file; choose another place"),
        (".", "is around the source"),
    ):
        assert message in mistake(*words("knn", "--overwrite", output=output)), output
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "model" / "evaluation").exists()


@pytest.mark.parametrize(
    ("protocols", "options", "package", "message"),
    [
        ("knn,logistic_regression", (), "sklearn", "logistic_regression needs scikit-learn"),
        (
            "retrieval,knn",
            ("--retrieval_pca_dimensions", 4),
            "sklearn",
            "with `--retrieval_pca_dimensions` needs scikit",
        ),
        ("segmentation", (), "torchmetrics", "segmentation needs torchmetrics"),
    ],
)
def test_missing_extras_are_named_before_any_work(tmp_path, words, monkeypatch, protocols, options, package, message):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    answer = mistake(*words(protocols, *options, data="masks_" if protocols == "segmentation" else ""))
    assert message in answer
    assert 'pip install "dinov2_hf[evaluation]"' in answer
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("protocols", "options", "message"),
    [
        (
            "knn,linear",
            ("--linear_num_layers", 1, 4),
            "`--linear_num_layers` is 1 4, but must be numbers from 1 to the 2",
        ),
        ("knn,retrieval", ("--retrieval_pca_dimensions", 99), "`--retrieval_pca_dimensions` is 99"),
        ("knn,segmentation", (), "--segmentation_mask_column annotation is not a column"),
        ("knn,linear", ("--linear_validation_fraction", "nan"), "`--linear_validation_fraction` is nan"),
        ("knn", ("--knn_temperature", "nan"), "`--knn_temperature` is nan, but must be a finite number above 0"),
        (
            "knn,logistic_regression",
            ("--logistic_regression_log10_c_range", -500, 500),
            "`--logistic_regression_log10_c_range` is -500.0 500.0",
        ),
    ],
)
def test_mistakes_of_later_protocols_come_before_the_first(tmp_path, words, protocols, options, message):
    assert message in mistake(*words(protocols, *options))
    assert not (tmp_path / "out").exists()


def test_a_trained_head_is_kept_when_its_measurement_fails(tmp_path, words, monkeypatch):
    words = words("segmentation", data="masks_")
    folder = tmp_path / "out" / "segmentation"

    def fail(*arguments):
        raise ValueError("the device is out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "_measure", fail)
        assert "the device is out of memory" in mistake(*words)
    head = (folder / "unmeasured_head.safetensors").read_bytes()
    assert head
    model = (folder / "model" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "train_head", fail)
        run(*words)  # without a training
        assert "segmentation_miou" in results(tmp_path / "out")["segmentation"]["metrics"]
    assert (folder / "model" / "model.safetensors").read_bytes() == model
    assert not (folder / "unmeasured_head.safetensors").exists()


@pytest.mark.parametrize("options", [("--segmentation_learning_rate", 0.5), ("--segmentation_seed", 1), ("--bf16",)])
def test_another_training_does_not_take_the_head(tmp_path, words, monkeypatch, options):
    def fail(*arguments, **options):
        raise ValueError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "_measure", fail)
        mistake(*words("segmentation", data="masks_"))
    with monkeypatch.context() as patch:
        patch.setattr(segmentation, "train_head", fail)
        assert "stopped here" in mistake(*words("segmentation", *options, data="masks_"))


def test_names_of_classes_are_no_formulas(tmp_path, words):
    names = (r"$\frac{$", "a_b^{", "100 %")
    run(*words("segmentation", "--segmentation_class_names", *names, data="masks_"))
    metrics = results(tmp_path / "out")["segmentation"]["metrics"]
    assert any(rf"segmentation_iou_{name}" in metrics for name in names)
    assert Image.open(tmp_path / "out" / "segmentation" / "segmentation.png").width > 300


def test_a_picture_that_cannot_be_written_costs_no_numbers(tmp_path, words, caplog):
    (tmp_path / "out" / "knn").mkdir(parents=True)
    (tmp_path / "out" / ".dinov2_hf.json").write_text('{"written_by": "dinov2_hf", "kind": "evaluation"}')
    (tmp_path / "out" / "knn" / "knn.png").mkdir()
    run(*words("knn"))
    assert results(tmp_path / "out")["knn"]["metrics"]
    assert "knn.png could not be drawn" in caplog.text


def test_the_pixels_of_patches_are_the_baseline_of_segmentation(tmp_path, words):
    """The images are bands of one colour, so the pixels of a patch tell its class."""
    pixels = ("--baseline", "pixels")
    run(*words("segmentation,patch_knn", *pixels, "--patch_knn_k", 5, data="masks_"))
    found = results(tmp_path / "out")
    assert found["patch_knn"]["metrics"]["patch_knn_miou"] > 0.9
    assert 0 <= found["segmentation"]["metrics"]["segmentation_miou"] <= 1
    answer = mistake(*words("segmentation,knn", *pixels, output="other", data="masks_"))
    assert "those of patches for segmentation, but those of whole images for knn. Run them apart" in answer
    assert not (tmp_path / "other").exists()
