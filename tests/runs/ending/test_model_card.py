"""The model card: what it holds, what it keeps to itself, and how it changes for a repository."""

import pytest
import yaml
from huggingface_hub import ModelCard

from dinov2_hf import DINOv2Config
from dinov2_hf.runs.ending.model_card import card_for_repo, model_card


RECIPE = {
    "hidden_size": 32,
    "train_data": "/home/ada/scans/train.parquet",
    "eval_data": "ada/digits",
    "eval_split": "test",
    "eval_bank_data": None,
    "license": None,
    "max_steps": 7,
}
KNN = {
    "before": {"knn_top1_k10": 0.25, "knn_top5_k10": 0.6, "knn_top1_k20": 0.3},
    "after": {"knn_top1_k10": 0.875, "knn_top5_k10": 0.99, "knn_top1_k20": 0.9375},
}


def card(config=None, *, steps: int = 7, recipe: dict | None = None, **measured: dict) -> ModelCard:
    config = config or DINOv2Config(image_size=28, hidden_size=32, num_attention_heads=2)
    recipe = {**RECIPE, **(recipe or {})}
    return model_card(config, "my_run", steps=steps, recipe=recipe, measured={"knn": KNN, **measured})


def written(made: ModelCard) -> tuple[dict, str]:
    """Metadata and text as another program would read them."""
    _, metadata, text = str(made).split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_what_it_holds():
    metadata, text = written(card())
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert "license" not in metadata
    assert "datasets" not in metadata
    assert "after 7\nsteps on `train.parquet`" in text
    assert "(1, 5, 32): CLS, then patches" in text
    assert "| k=20 | 0.938 | 0.300 |" in text
    assert "with the labels of `train.parquet`" in text
    assert "hidden_size: 32" in text
    assert "/home" not in str(card())


def test_accuracies_are_a_model_index():
    """It survives being written and read, and a data set on the Hub keeps its whole name."""
    (result,) = written(card())[0]["model-index"][0]["results"]
    assert result["dataset"] == {"name": "ada/digits", "type": "ada/digits", "split": "test"}
    assert [(metric["name"], metric["value"]) for metric in result["metrics"]] == [
        ("k-NN top-1, k=10", 0.875), ("k-NN top-1, k=20", 0.9375),
    ]  # fmt: skip
    again = ModelCard(str(card())).data.eval_results
    assert [result.metric_value for result in again] == [0.875, 0.9375]


def test_every_evaluation_is_in_it():
    """The Hub puts the metrics of one task and data set together, so their names say what they are of."""
    linear = {
        "before": {"linear_top1": 0.25, "linear_top5": 0.75},
        "after": {"linear_top1": 0.5, "linear_top5": 0.875},
    }
    patch_knn = {"before": None, "after": {"patch_knn_miou": 0.125, "patch_knn_mean_accuracy": 0.5}}
    recipe = {"dense_eval_data": "/data/street/test.parquet", "dense_eval_split": None, "dense_eval_bank_data": None}
    metadata, text = written(card(recipe=recipe, linear=linear, patch_knn=patch_knn))
    assert "| k=20 | 0.938 | 0.300 |" in text
    assert "the best of 26 on `ada/digits`, trained on `train.parquet` without" in text
    assert "| top-1 | 0.500 | 0.250 |\n| top-5 | 0.875 | 0.750 |" in text
    assert "Segmentation of `test.parquet` by the nearest frozen patch features of `test.parquet`" in text
    assert "| mIoU | 0.125 | not measured |" in text
    labelled, masked = metadata["model-index"][0]["results"]
    names = [metric["name"] for metric in labelled["metrics"]]
    assert names == ["k-NN top-1, k=10", "k-NN top-1, k=20", "linear probe top-1", "linear probe top-5"]
    assert masked["task"]["type"] == "image-segmentation"
    assert masked["dataset"] == {"name": "test.parquet", "type": "private"}
    assert masked["metrics"] == [{"type": "mean_iou", "value": 0.125, "name": "patch k-NN mIoU"}]


def test_the_query_of_a_url_is_not_in_it():
    made = str(card(recipe={"train_data": "https://host/ada/x.tar?X-Amz-Signature=secret#part"}))
    assert "`x.tar`" in made
    assert "secret" not in made
    assert "ada/x" not in made


def test_before_training_may_be_unknown():
    text = written(card(knn={"before": None, "after": KNN["after"]}))[1]
    assert "| k=20 | 0.938 | not measured |" in text


def test_the_example_needs_no_path_of_a_machine():
    text = written(card())[1]
    assert 'AutoModel.from_pretrained(".")' in text
    assert "In this folder" in text
    assert "In this folder" not in str(
        card_for_repo(card(), "ada/vits", revision=None, pictures=[], pretraining_model=False)
    )


def test_without_knn():
    metadata, text = written(card(knn={"before": None, "after": None}))
    assert "model-index" not in metadata
    assert "Not measured." in text


def test_license_data_set_and_registers():
    config = DINOv2Config(image_size=28, hidden_size=32, num_attention_heads=2, num_register_tokens=4)
    metadata, text = written(card(config, recipe={"license": "mit", "train_data": "ada/scans"}))
    assert metadata["license"] == "mit"
    assert metadata["datasets"] == ["ada/scans"]
    assert "(1, 9, 32): CLS, 4 registers, patches" in text


@pytest.mark.parametrize("revision", [None, "second"])
def test_for_a_repository(revision):
    made = card_for_repo(card(), "ada/vits", revision=revision, pictures=["patch_pca.png"], pretraining_model=True)
    metadata, text = written(made)
    source = '"ada/vits"' + (', revision="second"' if revision else "")
    assert "my_run" not in str(made)
    assert text.lstrip().startswith("# ada/vits\n")
    assert f"AutoModel.from_pretrained({source})" in text
    assert f'AutoModelForPreTraining.from_pretrained({source}, subfolder="pretraining_model")' in text
    assert "](patch_pca.png)" in text
    assert "training_curves" not in text
    assert metadata["model-index"][0]["name"] == "vits"


def test_a_foreign_card_keeps_its_words():
    text = '---\ntags:\n- a\n---\n# Mine\n\n```python\n# a comment\nload("Mine")\n```\n'
    made = card_for_repo(ModelCard(text), "ada/vits", revision=None, pictures=[], pretraining_model=False)
    assert str(made) == text
