"""A protocol of the user's own: the command, its help, its records, its table and the card of the model know it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.cli import main
from dinov2_hf.evaluation import FeatureExtractor
from tests.evaluation.coloured_images import COLOURS, coloured_dataset


@pytest.fixture
def words(tmp_path, tiny_config, spread):
    spread(DINOv2Model(tiny_config)).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "model"
    )
    for part, per_class in (("train", 4), ("test", 2)):
        coloured_dataset(list(COLOURS), per_class, len(part)).to_parquet(tmp_path / f"{part}.parquet")
    return [
        "evaluate", "--model", str(tmp_path / "model"), "--train_data", str(tmp_path / "train.parquet"), "--eval_data",
        str(tmp_path / "test.parquet"), "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip


def mean_accuracy(folder) -> float:
    """By a loop."""
    model, processor = (kind.from_pretrained(folder / "model") for kind in (DINOv2Model, DINOv2ImageProcessor))
    train, test = (coloured_dataset(list(COLOURS), count, seed) for count, seed in ((4, 5), (2, 4)))
    extractor = FeatureExtractor(model, processor)
    features, labels = extractor.features(train).values, torch.tensor(train["label"])
    correct = 0
    for feature, answer in zip(extractor.features(test).values, test["label"], strict=True):
        distances = [(feature - features[labels == label].mean(dim=0)).norm() for label in range(len(COLOURS))]
        correct += int(torch.stack(distances).argmin()) == answer
    return correct / len(test)


def test_a_protocol(tmp_path, words, capsys):
    main([*words, "--protocol", "knn,class_means:evaluate_class_means", "--knn_ks", "3", "--update_card"])
    printed = capsys.readouterr().out
    assert "class_means: Classify images by the nearest class mean." in printed
    assert "| class_means | class_means_top1 |" in printed
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["protocols"]
    assert list(found) == ["knn", "class_means"]
    assert found["class_means"]["metrics"] == {"class_means_top1": pytest.approx(mean_accuracy(tmp_path))}
    assert found["class_means"]["options"]["power"] == 2.0
    assert found["class_means"]["findings"] == {"num_classes": len(COLOURS)}
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert "| class_means | class_means_top1 |" in card.text
    result = next(one for one in card.data.eval_results if one.metric_name == "class_means_top1")
    assert (result.task_type, result.metric_type) == ("image-classification", "accuracy")

    main([*words, "--protocol", "class_means:evaluate_class_means"])
    assert "class_means: measured already" in capsys.readouterr().out


def test_its_options(tmp_path, words, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--protocol", "class_means:evaluate_class_means", "--help"])
    helped = capsys.readouterr().out
    assert "--class_means_power" in helped
    assert "of the differences that make up a distance" in helped
    words += ["--protocol", "knn,class_means:evaluate_class_means", "--knn_ks", "3", "--class_means_power", "-1"]
    with pytest.raises(SystemExit, match="`--class_means_power` is -1.0, but must be above 0"):
        main(words)
    assert not (tmp_path / "out").exists()  # refused before knn was measured


def test_a_function_that_is_no_protocol(words):
    with pytest.raises(SystemExit, match="names detail:detail, which is not a protocol: register the function"):
        main([*words, "--protocol", "detail:detail"])
