"""The linear protocol on images, and the model folder it leaves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, Dinov2Config, Dinov2Model, pipeline

from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.data import decode_channels
from dinov2_hf.evaluation.classification.classifier_grid import ClassifierGrid
from dinov2_hf.evaluation.linear import evaluate_linear, feature_groups
from dinov2_hf.feature_kinds import FeatureKind
from dinov2_hf.features import FeatureExtractor, image_features

from .coloured_images import COLOURS, coloured_dataset, coloured_rows


OPTIONS = {"num_layers": (1, 2), "num_steps": 60, "train_batch_size": 12}


@pytest.mark.parametrize("cache_features", [True, False])
def test_it_learns_and_its_best_head_loads(tmp_path, model, processor, cache_features):
    names = list(COLOURS)
    train, evaluated = coloured_dataset(names, 8, 0), coloured_dataset(names, 3, 1, class_names=names[::-1])
    metrics = evaluate_linear(
        FeatureExtractor(model, processor),
        train,
        evaluated,
        grid="paper",
        cache_features=cache_features,
        output_dir=tmp_path,
        **OPTIONS,
    )
    assert metrics["linear_top1"] > 0.9
    assert metrics["linear_top5"] == 1.0
    listed = json.loads((tmp_path / "grid.json").read_text())
    assert len(listed) == 52
    assert max(one["top1"] for one in listed) == metrics["linear_top1"]
    assert Image.open(tmp_path / "linear.png").width > 300

    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert [classifier.config.id2label[index] for index in range(6)] == names
    assert classifier.config.classifier_num_layers == metrics["linear_best_num_layers"]
    assert classifier.config.classifier_use_patch_mean == bool(metrics["linear_best_patch_mean"])
    for name, tensor in model.state_dict().items():
        assert torch.equal(classifier.dinov2.state_dict()[name], tensor)
    answers = pipeline("image-classification", model=str(tmp_path / "model"))(list(evaluated["image"]))
    right = [
        answer[0]["label"] == names[::-1][label] for answer, label in zip(answers, evaluated["label"], strict=True)
    ]
    assert np.mean(right) == pytest.approx(metrics["linear_top1"])


def test_the_features_of_each_group(model, processor, extractor):
    pixels = torch.randn(3, 3, 32, 32)
    rows = coloured_rows(["red", "green"], 2, 0)
    features = extractor.features(rows, kind="last_layers_and_mean_patch", num_layers=2).values
    groups, whole = feature_groups(model, (1, 2)), FeatureKind("last_layers_and_mean_patch", 2)
    assert list(groups) == [
        "CLS of 1 block",
        "CLS of 2 blocks",
        "CLS of 1 block, mean patch",
        "CLS of 2 blocks, mean patch",
    ]
    pixels = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        last, both = (image_features(model, pixels, "last_layers", number) for number in (1, 2))
        mean = image_features(model, pixels, "mean_patch")
    for group, expected in zip(groups.values(), (last, both, [last, mean], [both, mean]), strict=True):
        expected = torch.cat(expected, dim=1) if isinstance(expected, list) else expected
        torch.testing.assert_close(features[:, whole.columns(group, features.shape[1])], expected)


def test_the_best_may_be_chosen_on_held_out_training_images(monkeypatch, extractor):
    train, evaluated = coloured_dataset(["red", "green"], 20, 0), coloured_dataset(["red", "green"], 2, 1)
    seen = []
    step = ClassifierGrid.step
    monkeypatch.setattr(
        ClassifierGrid, "step", lambda self, features, *rest: (seen.append(features), step(self, features, *rest))[1]
    )
    metrics = evaluate_linear(extractor, train, evaluated, cache_features=True, validation_fraction=0.25, **OPTIONS)
    assert set(metrics) == {
        "linear_validation_top1", "linear_top1", "linear_best_learning_rate", "linear_best_num_layers",
        "linear_best_patch_mean",
    }  # fmt: skip
    assert len(torch.cat(seen).unique(dim=0)) == 30


def test_a_run_is_repeated_by_its_seed_and_leaves_the_model_alone(model, extractor):
    train, evaluated = coloured_dataset(["red", "blue"], 8, 0), coloured_dataset(["red", "blue"], 8, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = evaluate_linear(extractor, train, evaluated, **{**OPTIONS, "num_steps": 5})
    assert torch.equal(torch.get_rng_state(), state)
    again = FeatureExtractor(model, extractor.image_processor, num_workers=1)
    assert first == evaluate_linear(again, train, evaluated, **{**OPTIONS, "num_steps": 5})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_stock_model_leaves_its_head_alone(tmp_path, processor):
    model = Dinov2Model(
        Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    )
    data = coloured_dataset(["red", "blue"], 6, 0)
    extractor = FeatureExtractor(model, processor)
    metrics = evaluate_linear(extractor, data, data, cache_features=True, output_dir=tmp_path, **OPTIONS)
    reads = json.loads((tmp_path / "model" / "classifier.json").read_text())
    assert reads["num_layers"] == metrics["linear_best_num_layers"]
    assert reads["id2label"] == {"0": "red", "1": "blue"}
    assert (tmp_path / "model" / "classifier.safetensors").exists()


def test_images_of_other_channels_are_cropped_too(tmp_path):
    from dinov2_hf import DINOv2ImageProcessor

    model = DINOv2Model(
        DINOv2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8, num_channels=4
        )
    )
    processor = DINOv2ImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 4, image_std=[0.5] * 4,
        do_convert_rgb=False,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    rows = []
    for index in range(12):
        path = tmp_path / f"{index}.npy"
        np.save(path, (generator.random((20, 24, 4)) * 0.2 + 0.8 * (index % 2)).astype(np.float32))
        rows.append({"image": {"path": str(path), "bytes": None}, "label": index % 2})
    assert decode_channels(rows[0]["image"], 4).shape == (20, 24, 4)
    extractor = FeatureExtractor(model, processor)
    metrics = evaluate_linear(extractor, rows, rows, grid="paper", **{**OPTIONS, "train_batch_size": 8})
    assert metrics["linear_top1"] == 1.0


def test_broken_training_images_are_replaced_or_left_out(caplog, extractor):
    rows = coloured_rows(["red", "green"], 10, 0)
    rows[3] = {**rows[3], "image": b"no image"}
    evaluated = coloured_rows(["red", "green"], 2, 1)
    for cache_features in (True, False):
        metrics = evaluate_linear(extractor, rows, evaluated, grid="paper", cache_features=cache_features, **OPTIONS)
        assert metrics["linear_top1"] == 1.0
    assert "1 training images cannot be decoded" in caplog.text
    with pytest.raises(ValueError, match="row 3 cannot be decoded"):
        evaluate_linear(extractor, rows, rows, cache_features=True, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": (1, 4)}, r"`num_layers` is 1 4, but must be numbers from 1 to the 2 blocks"),
        ({"grid": "other"}, '`grid` is "other"; it must be "code" or "paper"'),
        ({"num_steps": 0}, "`num_steps` is 0"),
        ({"train_batch_size": 100}, "`train_batch_size` is 100 .* 12 training images"),
        ({"validation_fraction": 1.5}, "`validation_fraction` is 1.5"),
        ({"label_column": "fine"}, "label_column='fine' is not a column"),
    ],
)
def test_mistakes_are_named_before_any_compute(model, processor, change, message):
    data = coloured_dataset(["red", "green"], 6, 0)
    with pytest.raises(ValueError, match=message):
        evaluate_linear(FeatureExtractor(model, processor), data, data, **OPTIONS | change)


def test_crops_smaller_than_a_patch_are_refused(model):
    from dinov2_hf import DINOv2ImageProcessor

    processor = DINOv2ImageProcessor(size={"shortest_edge": 4}, crop_size={"height": 4, "width": 4})
    data = coloured_dataset(["red", "green"], 6, 0)
    with pytest.raises(ValueError, match="4 x 4 pixels; both must be multiples of the patch size, 8"):
        evaluate_linear(FeatureExtractor(model, processor), data, data, **OPTIONS)
