"""metrics.json, the table, and results in the README of a model."""

import itertools
import json

import pytest
import yaml
from huggingface_hub import ModelCard

from dinov2_hf.cli.evaluate import command_line
from dinov2_hf.evaluation.protocols import PROTOCOLS
from dinov2_hf.evaluation.result_card import HEADING, check_card, update_model_card
from dinov2_hf.evaluation.results import EvaluationResults, check_output, format_metrics
from dinov2_hf.output_folders import check_kind, write_marker


MEASURED = {
    "model": "m",
    "model_revision": None,
    "weights_sha256": "abc",
    "image_processor": {"crop_size": {"height": 32, "width": 32}},
    "baseline": None,
    "train_data": "/private/birds/train.parquet",
    "train_split": "train",
    "num_train_rows": 20,
    "eval_data": "ada/birds",
    "eval_split": "test",
    "num_eval_rows": 10,
}
OTHERS = """---
license: mit
model-index:
- name: mine
  results:
  - task:
      type: image-classification
      name: other
    dataset:
      name: birds
      type: ada/birds
      split: test
    metrics:
    - type: accuracy
      value: 0.9
      name: y
    source:
      url: https://example.org
---

# Mine

Words.

## Later

More words.
"""


def add(results, protocol, metrics, **options) -> None:
    results.add(protocol, metrics, options=options, settled={}, **facts(protocol))


def facts(protocol) -> dict:
    known = PROTOCOLS.named(protocol).facts
    return {"precision": "float32", "task": known["task"], "main_metrics": known["metrics"]}


def values(protocols, **measured) -> dict:
    """What `metrics.json` holds of protocols, each with one metric."""
    found = {name: {"metrics": {metric: value}, **facts(name)} for name, (metric, value) in protocols.items()}
    return {**MEASURED, **measured, "protocols": found}


KNN, KNN_AGAIN = {"knn": ("knn_top1_k20", 0.4)}, {"knn": ("knn_top1_k20", 0.6)}
LINEAR = {"linear": ("linear_top1", 0.8)}


def test_signatures_of_urls_are_in_no_file(tmp_path):
    signed = "https://me:pass@data.example/test.parquet?X-Amz-Signature=c0ffee"
    results = EvaluationResults(tmp_path, MEASURED | {"eval_data": signed})
    add(results, "knn", {"knn_top1_k20": 0.5})
    assert results.values["eval_data"] == "https://data.example/test.parquet"
    assert command_line(eval_data=signed, batch_size=8) == (
        "dinov2-hf evaluate --eval_data https://data.example/test.parquet --batch_size 8"
    )
    again = EvaluationResults(tmp_path, MEASURED | {"eval_data": signed})  # it is of the same data
    (tmp_path / "model").mkdir()
    card = update_model_card(tmp_path / "model", again.values).read_text()
    for text in ((tmp_path / "metrics.json").read_text(), card):
        assert "c0ffee" not in text
        assert "pass@" not in text


def test_results_are_added_to_what_is_there(tmp_path):
    first = EvaluationResults(tmp_path / "one", MEASURED)
    add(first, "knn", {"knn_top1_k20": 0.5}, ks=(20,), label_column="label")
    second = EvaluationResults(tmp_path / "one", MEASURED)
    add(second, "linear", {"linear_top1": 0.7})
    third = EvaluationResults(tmp_path / "one", MEASURED)
    add(third, "linear", {"linear_top1": 0.75})
    read = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert read == json.loads(json.dumps(third.values))
    assert third.metrics == {"knn": {"knn_top1_k20": 0.5}, "linear": {"linear_top1": 0.75}}
    assert read["protocols"]["knn"]["options"] == {"ks": [20], "label_column": "label"}
    assert read["protocols"]["knn"]["date"].endswith("+00:00")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["metrics.json"]


def test_finished_with_the_same_options_only(tmp_path):
    results = EvaluationResults(tmp_path, MEASURED)
    results.add(
        "linear", {"linear_top1": 0.5}, options={"num_layers": None, "seed": 0, "batch_size": 64},
        settled={"num_layers": [1, 3]}, precision="float32",
    )  # fmt: skip
    assert not results.is_finished("knn", {})
    for num_layers in (None, [1, 3], (1, 3)):
        assert results.is_finished("linear", {"num_layers": num_layers, "seed": 0, "batch_size": 8})
    with pytest.raises(
        ValueError, match=r"holds linear with other options \(`num_layers` 1 3; now `num_layers` 1 2\)"
    ):
        results.is_finished("linear", {"num_layers": [1, 2], "seed": 0, "batch_size": 64})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights_sha256", "other", "the weights of m, .* other ones"),
        ("baseline", "pixels", "`--baseline` None, .* pixels"),
        ("eval_data", "ada/cats", "`--eval_data` ada/birds, .* ada/cats"),
        ("num_train_rows", 21, "the number of rows of `--train_data` 20, .* 21"),
    ],
)
def test_another_model_or_other_data_are_not_mixed_in(tmp_path, name, value, message):
    add(EvaluationResults(tmp_path, MEASURED), "knn", {"knn_top1_k20": 0.5})
    before = (tmp_path / "metrics.json").read_text()
    with pytest.raises(ValueError, match=message):
        EvaluationResults(tmp_path, {**MEASURED, name: value})
    assert (tmp_path / "metrics.json").read_text() == before


def test_a_file_that_is_no_record_is_left_alone(tmp_path):
    (tmp_path / "metrics.json").write_text('{"loss": 1}')
    with pytest.raises(ValueError, match="cannot be read as results"):
        EvaluationResults(tmp_path, MEASURED)
    assert (tmp_path / "metrics.json").read_text() == '{"loss": 1}'


def test_folders_of_others_are_refused(tmp_path):
    foreign, run, link, data = (tmp_path / name for name in ("foreign", "run", "link", "data"))
    for folder in (foreign, run, link, data):
        folder.mkdir()
    (foreign / "notes.txt").write_text("mine")
    write_marker(run, "run")
    write_marker(link, "evaluation")
    (link / "knn").symlink_to(foreign)
    for folder, message in (
        (foreign, "holds files but no evaluation"),
        (run, "holds a training run; choose another folder, such as .*run/evaluation"),
        (link, "symbolic link"),
        (data / "out", "is inside the source"),
        (data, "is the same as the source"),
        (tmp_path, "is around the source"),
        (foreign / "notes.txt" / "out", "is a file; choose another place"),
        ("s3://bucket/out", "is a URL"),
    ):
        with pytest.raises(ValueError, match=message):
            check_output(type(tmp_path)(folder), [str(data), "ada/birds"], ["knn"])
    check_output(tmp_path / "new" / "out", [str(data)], ["knn"])
    assert not (tmp_path / "new").exists()


def test_the_table():
    table = format_metrics({"knn": {"knn_top1_k20": 0.52341}, "linear": {"linear_top1": 1.0}})
    assert table.splitlines() == [
        "| protocol | metric       |  value |",
        "|----------|--------------|-------:|",
        "| knn      | knn_top1_k20 | 0.5234 |",
        "| linear   | linear_top1  |      1 |",
    ]
    assert r"| iou_a\|b c |" in format_metrics({"segmentation": {"iou_a|b\nc": 0.5}})  # names of classes are anything


def test_a_card_is_made_and_shows_no_private_path(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_marker(folder, "model", list_files=True)
    found = values({"knn": ("knn_top1_k20", 0.51239)})
    text = update_model_card(folder, found).read_text()
    assert "# model\n" in text
    assert "private/birds" not in text
    assert "| knn      | knn_top1_k20 | 0.5124 | float32   |" in text
    assert "learned from `train.parquet (train)`" in text
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (result.dataset_type, result.metric_name, result.metric_value) == ("ada/birds", "knn_top1_k20", 0.5124)
    check_kind(folder, "model")  # the card is ours too, so the folder can be written again as a whole


def test_any_order_of_updates_gives_the_same_card(tmp_path):
    birds = {"eval_data": "/a/birds.parquet"}
    same_name = {"eval_data": "/b/birds.parquet"}
    updates = [
        values(KNN_AGAIN), values(LINEAR), values(KNN_AGAIN | LINEAR), values({"knn": ("knn_top1_k20", 0.1)}, **birds),
        values({"knn": ("knn_top1_k20", 0.2)}, **same_name), values(LINEAR, eval_split="validation"),
    ]  # fmt: skip
    cards = set()
    for number, order in enumerate(itertools.islice(itertools.permutations(updates), 0, None, 60)):
        folder = tmp_path / str(number) / "model"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(OTHERS)
        for one in [values(KNN), *order, *order]:
            update_model_card(folder, one)
        cards.add((folder / "README.md").read_text())
    (card,) = cards
    assert card.count(HEADING) == 1
    assert card.count("\n### On ") == 4
    assert card.count("| linear_top1 ") == 2
    assert "0.4 |" not in card
    results = ModelCard(card).data.eval_results
    by_data = {(r.dataset_name, r.dataset_split, r.dataset_type, r.metric_name): r.metric_value for r in results}
    assert len(by_data) == len(results) == 6
    of_files = sorted((name, value) for (data, _, _, name), value in by_data.items() if data == "birds.parquet")
    assert of_files == [("knn_top1_k20", 0.1), ("knn_top1_k20", 0.2)]


def test_words_and_results_of_others_stay(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(OTHERS)
    theirs = yaml.safe_load(OTHERS.split("---")[1])["model-index"][0]["results"][0]
    update_model_card(tmp_path, values(KNN))
    path.write_text(path.read_text() + "\nA word about these numbers.\n")
    ModelCard.load(path).save(path)  # as other programs read and write it
    text = update_model_card(tmp_path, values(KNN_AGAIN | LINEAR)).read_text()
    for words in ("# Mine\n\nWords.", "## Later\n\nMore words.", "license: mit", "A word about these numbers."):
        assert words in text
    index = yaml.safe_load(text.split("---")[1])["model-index"]
    assert [model["name"] for model in index] == ["mine"]
    assert theirs in index[0]["results"]
    metrics = [metric for result in index[0]["results"] for metric in result["metrics"]]
    assert sorted((metric["name"], metric["value"]) for metric in metrics) == [
        ("knn_top1_k20", 0.6), ("linear_top1", 0.8), ("y", 0.9),
    ]  # fmt: skip


def test_results_of_other_weights_go(tmp_path):
    update_model_card(tmp_path, values(KNN))
    text = update_model_card(tmp_path, values(LINEAR, weights_sha256="new")).read_text()
    assert "knn_top1_k20" not in text
    assert "linear_top1" in text


def test_results_that_belong_in_no_card(tmp_path):
    with pytest.raises(ValueError, match="`--baseline` is pixels"):
        check_card(str(tmp_path), "pixels")
    with pytest.raises(ValueError, match="not a folder with a README"):
        check_card("ada/vits", None)
    for text, message in (
        ("---\na: [\n---\n", "cannot be read as a model card"),
        ("---\nmodel-index: 3\n---\n", "`model-index` in .* is not a list of models"),
        (f"{HEADING}\n\n<!-- dinov2_hf evaluations: [ -->\n", "damaged record"),
    ):
        (tmp_path / "README.md").write_text(text)
        with pytest.raises(ValueError, match=message):
            check_card(str(tmp_path), None)
