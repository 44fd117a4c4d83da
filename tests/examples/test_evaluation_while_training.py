"""k-NN, a linear probe and patch k-NN beside a training: when, how much, where they show up, and what is refused."""

import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf.data import load_image_dataset
from dinov2_hf.evaluation.baselines import PixelModel
from dinov2_hf.evaluation.knn import evaluate_knn
from dinov2_hf.evaluation.linear import evaluate_linear
from dinov2_hf.evaluation.patch_knn import evaluate_patch_knn
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.runs.while_training.dense_probe import spread_rows
from tests.evaluation.dense.data import banded_images, with_map

from .conftest import drawn
from .test_pretrain import run, weights


FLAGS = ("--dense_eval_steps", "2", "--keep_best", "patch_knn_miou")


def records(output_dir: Path, metric: str) -> list[dict]:
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if metric in record]


@pytest.fixture(scope="module")
def measured(no_pictures, pretrain, recipe, images, evaluations, tmp_path_factory):
    """A run with every evaluation, and what it printed."""
    import contextlib
    import io

    output_dir, printed = tmp_path_factory.mktemp("measured") / "out", io.StringIO()
    with drawn(no_pictures), contextlib.redirect_stdout(printed):
        run(pretrain, recipe, images, output_dir, *evaluations, *FLAGS)
    return output_dir, printed.getvalue()


def test_each_has_steps_of_its_own(measured):
    output_dir, _ = measured
    for metric, steps in {"knn_top1_k20": [0, 3, 6], "linear_top1": [0, 6], "patch_knn_miou": [0, 2, 4, 6]}.items():
        assert [record["step"] for record in records(output_dir, metric)] == steps
    last = records(output_dir, "linear_top1")[-1]
    assert {"knn_top1_k10", "patch_knn_pixel_accuracy", "patch_knn_miou_stderr"} < last.keys()


def test_they_are_those_of_the_exported_model(measured, images, masks):
    """As the protocols of `dinov2-hf evaluate` measure it, to the last digit."""
    folder = measured[0] / "model"
    extractor = FeatureExtractor(AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder))
    bank, queries = (load_image_dataset(str(masks), split=split) for split in ("train", "test"))
    dataset = load_image_dataset(str(images), split="train")
    expected = evaluate_patch_knn(extractor, bank, queries) | evaluate_linear(
        extractor, dataset, dataset, grid="paper", num_layers=(1,), num_steps=1000, train_batch_size=24,
        cache_features=True,
    )  # fmt: skip
    last = records(measured[0], "linear_top1")[-1]
    for name in ("patch_knn_miou", "patch_knn_miou_stderr", "patch_knn_mean_accuracy", "linear_top1"):
        assert last[name] == expected[name]


def test_raw_pixels_stand_beside_them(measured, images):
    """As `--baseline pixels` of the command measures them, since no side has more than 32."""
    extractor = FeatureExtractor(PixelModel(), AutoImageProcessor.from_pretrained(measured[0] / "model"))
    dataset = load_image_dataset(str(images), split="train")
    expected = evaluate_knn(extractor, dataset, dataset, ks=(10, 20))
    summary = json.loads((measured[0] / "metrics.json").read_text())
    assert summary["knn"]["pixels"] == expected
    assert "pixels" not in {*summary["linear"], *summary["patch_knn"]}
    card = (measured[0] / "model" / "README.md").read_text()
    row = f"| k=20 | {summary['knn']['after']['knn_top1_k20']:.3f} | {summary['knn']['before']['knn_top1_k20']:.3f} |"
    assert f"{row} {expected['knn_top1_k20']:.3f} |" in card


def test_the_training_is_not_disturbed(measured, pretrain, recipe, images, tmp_path):
    run(pretrain, recipe, images, tmp_path / "out")
    alone, beside = weights(tmp_path / "out"), weights(measured[0])
    assert all((alone[name] == beside[name]).all() for name in alone)


def test_they_are_printed_kept_and_in_the_card(measured, masks):
    output_dir, printed = measured
    first, last = (records(output_dir, "linear_top1")[place] for place in (0, -1))
    line = (
        f"step 6: k-NN k=10 {last['knn_top1_k10']:.3f}, k=20 {last['knn_top1_k20']:.3f}; linear top-1"
        f" {last['linear_top1']:.3f}; patch k-NN mIoU {last['patch_knn_miou']:.3f}, pixel accuracy"
        f" {last['patch_knn_pixel_accuracy']:.3f} ("
    )
    assert line in printed
    before, after = (f"{record['patch_knn_miou']:.3f}" for record in (first, last))
    assert f"patch k-NN mIoU on {masks}\n  before training   {before}\n  after training    {after}\n" in printed
    summary = json.loads((output_dir / "metrics.json").read_text())
    assert summary["linear"] == {
        "before": {"linear_top1": first["linear_top1"]}, "after": {"linear_top1": last["linear_top1"]},
    }  # fmt: skip
    assert summary["patch_knn"]["after"]["patch_knn_miou"] == last["patch_knn_miou"]
    best = max(records(output_dir, "patch_knn_miou")[1:], key=lambda record: record["patch_knn_miou"])
    assert summary["best"] == {"metric": "patch_knn_miou", "value": best["patch_knn_miou"], "step": best["step"]}
    assert (output_dir / "model_best" / "model.safetensors").is_file()
    card = (output_dir / "model" / "README.md").read_text()
    assert f"| mIoU | {last['patch_knn_miou']:.3f} | {first['patch_knn_miou']:.3f} |" in card
    assert f"| top-1 | {last['linear_top1']:.3f} | {first['linear_top1']:.3f} |" in card
    tables = [result["task"]["type"] for result in yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]]
    assert tables == ["image-classification", "image-segmentation"]


def test_a_resumed_run_goes_on_with_them(measured, pretrain, recipe, images, evaluations, tmp_path):
    flags = [*evaluations, *FLAGS]
    run(pretrain, recipe, images, tmp_path / "out", *flags, "--stop_after_steps", "2")
    run(pretrain, recipe, images, tmp_path / "out", *flags, "--resume_from_checkpoint", "latest")
    expected = [record for record in records(measured[0], "patch_knn_miou") if record["step"] != 2]
    found = [record for record in records(tmp_path / "out", "patch_knn_miou") if record["step"] != 2]
    assert found == expected


def test_masks_alone_will_do(pretrain, recipe, images, masks, tmp_path, caplog):
    bank, queries = str(masks / "train.parquet"), str(masks / "test.parquet")
    flags = ("--dense_eval_data", queries, "--dense_eval_bank_data", bank, "--dense_eval_image_size", "24")
    with caplog.at_level(logging.INFO):
        run(
            pretrain, recipe, images, tmp_path / "out", *flags, "--max_dense_eval_bank_images", "2", "--max_steps", "2"
        )
    assert "patch k-NN of 3 images by the masks of 2 (3 classes, 24 pixels) every 3 steps" in caplog.text
    assert [record["step"] for record in records(tmp_path / "out", "patch_knn_miou")] == [0, 2]
    assert len(records(tmp_path / "out", "patch_knn_miou_stderr")) == 2
    assert records(tmp_path / "out", "knn_top1_k20") == []


def test_of_one_image_there_is_no_standard_error(pretrain, recipe, images, masks, tmp_path):
    flags = ("--dense_eval_data", str(masks), "--max_dense_eval_images", "1", "--max_steps", "2")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert len(records(tmp_path / "out", "patch_knn_miou")) == 2
    assert records(tmp_path / "out", "patch_knn_miou_stderr") == []
    assert "NaN" not in (tmp_path / "out" / "metrics.json").read_text()


def test_images_are_spread_over_the_data():
    dataset = datasets.Dataset.from_dict({"row": list(range(10))})
    assert spread_rows(dataset, 4)["row"][:] == [0, 2, 5, 7]
    assert spread_rows(dataset, 10) is spread_rows(dataset, None) is dataset


@pytest.fixture(scope="module")
def bad_masks(tmp_path_factory) -> Path:
    """Data sets that cannot be measured with, each a parquet file."""
    folder, data = tmp_path_factory.mktemp("bad"), banded_images(3)
    data.to_parquet(folder / "good.parquet")
    data.remove_columns("annotation").to_parquet(folder / "no_masks.parquet")
    with_map(data, "annotation", np.zeros((9, 9), dtype=np.uint8)).to_parquet(folder / "small_mask.parquet")
    with_map(data, "annotation", np.zeros((40, 48, 3), dtype=np.uint8)).to_parquet(folder / "colours.parquet")
    one_class = [dict(row, annotation=Image.fromarray(np.zeros((40, 48), dtype=np.uint8))) for row in data]
    datasets.Dataset.from_list(one_class, features=data.features).to_parquet(folder / "one_class.parquet")
    data.rename_column("image", "photo").to_parquet(folder / "photo.parquet")
    banded_images(3, seed=7).to_parquet(folder / "bank.parquet")
    return folder


MISTAKES = {
    "nowhere": (("--dense_eval_data", "{bad}/nowhere.parquet"), "matches no file"),
    "no masks": (("--dense_eval_data", "{bad}/no_masks.parquet"), "dense_eval_mask_column='annotation' is not a col"),
    "size": (("--dense_eval_data", "{bad}/small_mask.parquet"), "row 1 .*of the evaluation data is 9 x 9, but its"),
    "colours": (("--dense_eval_data", "{bad}/colours.parquet"), "`dense_eval_mask_column` .* row 1 .*cannot be used"),
    "one class": (
        ("--dense_eval_data", "{bad}/good.parquet", "--dense_eval_bank_data", "{bad}/one_class.parquet"),
        "of the bank has 1 classes besides `dense_eval_ignore_index` 255",
    ),
    "several images": (
        ("--dense_eval_data", "{bad}/photo.parquet"),
        "dense_eval_image_column is not given, and 3 columns",
    ),
    "one column": (
        ("--dense_eval_data", "{bad}/good.parquet", "--dense_eval_image_column", "annotation"),
        "`dense_eval_mask_column` is 'annotation', which is also the column of images; name another",
    ),
    "itself": (
        ("--dense_eval_data", "{bad}/good.parquet", "--dense_eval_bank_data", "{bad}/good.parquet"),
        "have 3 of 3 images in common, which would find themselves; give other images with masks as --dense_eval_ba",
    ),
    "less than a patch": (
        ("--dense_eval_data", "{bad}/good.parquet", "--dense_eval_image_size", "3"),
        r"`dense_eval_image_size` is 3, less than a patch \(4 pixels\)",
    ),
    "no split": (("--dense_eval_data", "{bad}/splits"), "name the one to evaluate on, --dense_eval_split"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_before_training(pretrain, recipe, images, bad_masks, tmp_path, flags, message):
    splits = {"one": datasets.load_dataset("parquet", data_files=str(bad_masks / "good.parquet"))["train"]}
    splits["two"] = splits["one"]
    if not (bad_masks / "splits").exists():
        datasets.DatasetDict(splits).save_to_disk(bad_masks / "splits")
    flags = [flag.format(bad=bad_masks) for flag in flags]
    bank = [] if "--dense_eval_bank_data" in flags else ["--dense_eval_bank_data", str(bad_masks / "bank.parquet")]
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{message}") as stop:
        run(pretrain, recipe, images, tmp_path / "out", *flags, *bank)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_some_images_of_the_bank_are_told(pretrain, recipe, images, masks, bad_masks, tmp_path, caplog):
    mixed = datasets.concatenate_datasets([banded_images(3), banded_images(3, seed=9)])
    mixed.to_parquet(tmp_path / "mixed.parquet")
    bank = str(bad_masks / "good.parquet")
    flags = ("--dense_eval_data", str(tmp_path / "mixed.parquet"), "--dense_eval_bank_data", bank, "--max_steps", "2")
    with caplog.at_level(logging.WARNING):
        run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert "3 of the 6 images of dense_eval_data are in its bank too" in caplog.text
