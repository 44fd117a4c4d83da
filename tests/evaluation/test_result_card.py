"""metrics.json, the table, and results in the README of a model."""

import json

import pytest
from huggingface_hub import ModelCard

from dinov2_hf.evaluation.result_card import HEADING, check_card, update_model_card
from dinov2_hf.evaluation.results import EvaluationResults, format_metrics


DATA = {
    "train_data": "/private/birds/train.parquet",
    "train_split": "train",
    "eval_data": "ada/birds",
    "eval_split": "test",
}


def values(tmp_path, name="one", **metrics):
    results = EvaluationResults(tmp_path / name, model="m", baseline=None, data=DATA, overwrite=False)
    results.add("knn", metrics, {"ks": [20]}, 1.26)
    return results.values


def test_metrics_json_is_written_and_not_overwritten(tmp_path):
    written = values(tmp_path, knn_top1_k20=0.5)
    read = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert read == written
    assert read["protocols"]["knn"] == {"metrics": {"knn_top1_k20": 0.5}, "options": {"ks": [20]}, "seconds": 1.3}
    with pytest.raises(ValueError, match="holds the results of an evaluation"):
        values(tmp_path)
    EvaluationResults(tmp_path / "one", model="m", baseline=None, data=DATA, overwrite=True)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["metrics.json"]


def test_the_table():
    table = format_metrics({"knn": {"knn_top1_k20": 0.52341}, "linear": {"linear_top1": 1.0}})
    assert table.splitlines() == [
        "| protocol | metric       |  value |",
        "|----------|--------------|-------:|",
        "| knn      | knn_top1_k20 | 0.5234 |",
        "| linear   | linear_top1  |      1 |",
    ]


def test_a_card_is_made_and_shows_no_private_path(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = update_model_card(folder, values(tmp_path, knn_top1_k20=0.51239, knn_top5_k20=0.9))
    text = path.read_text()
    assert "# model\n" in text
    assert "private/birds" not in text
    assert "| knn      | knn_top1_k20 | 0.5124 |" in text
    assert "learned from `train.parquet`" in text
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_name, result.metric_value) == ("ada/birds", "knn_top1_k20", 0.5124)


def test_other_words_and_results_stay_and_the_same_data_is_replaced(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nlicense: mit\nmodel-index:\n- name: mine\n  results:\n  - task:\n      type: image-classification\n"
        "      name: other\n    dataset:\n      name: x\n      type: x\n    metrics:\n    - type: accuracy\n"
        "      value: 0.9\n      name: y\n---\n\n# Mine\n\nWords.\n\n## Later\n\nMore words.\n"
    )
    first = values(tmp_path, "one", knn_top1_k20=0.4)
    update_model_card(folder, first)
    update_model_card(folder, {**values(tmp_path, "two", knn_top1_k20=0.7), "eval_split": "validation"})
    text = update_model_card(folder, values(tmp_path, "three", knn_top1_k20=0.6)).read_text()
    assert "0.4 |" not in text
    assert "0.6 |" in text
    assert "0.7 |" in text
    assert text.count(HEADING) == 1
    for words in ("# Mine\n\nWords.", "## Later\n\nMore words.", "license: mit"):
        assert words in text
    linear = values(tmp_path, "four")
    linear["protocols"] = {"linear": {"metrics": {"linear_top1": 0.8}}}
    text = update_model_card(folder, linear).read_text()
    assert "| knn      | knn_top1_k20 |   0.6 |\n| linear   | linear_top1  |   0.8 |" in text
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "mine"
    assert sorted(result.metric_value for result in card.data.eval_results) == [0.6, 0.7, 0.8, 0.9]


def test_results_that_belong_in_no_card(tmp_path):
    with pytest.raises(ValueError, match="`baseline` is pixels"):
        check_card(str(tmp_path), "pixels")
    with pytest.raises(ValueError, match="no folder with a README"):
        check_card("ada/vits", None)
