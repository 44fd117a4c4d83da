"""A folder becomes the model it holds, or one sentence says why not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
)

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from dinov2_hf.conversion.model_folder import load_model_folder

from .model_folders import write_model


STOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


@pytest.mark.parametrize(
    "kind",
    [
        DINOv2Model,
        DINOv2Backbone,
        DINOv2ForImageClassification,
        DINOv2ForSemanticSegmentation,
        DINOv2ForDepthEstimation,
    ],
)
def test_the_class_is_the_one_that_was_saved(tmp_path, kind):
    model = write_model(kind, tmp_path, num_register_tokens=1).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = load_model_folder(str(tmp_path))
    assert type(loaded) is kind
    assert not loaded.training
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_stock_folders(tmp_path):
    stock = Dinov2Model(Dinov2Config(**STOCK, use_mask_token=False))
    stock.save_pretrained(tmp_path / "no_mask")
    loaded = load_model_folder(tmp_path / "no_mask")
    assert type(loaded) is DINOv2Model
    assert not loaded.embeddings.mask_token.any()
    for registers in (0, 2):
        stock = Dinov2WithRegistersForImageClassification(
            Dinov2WithRegistersConfig(**STOCK, num_register_tokens=registers, num_labels=3)
        ).eval()
        stock.save_pretrained(tmp_path / "registers", save_original_format=registers == 0)
        loaded = load_model_folder(tmp_path / "registers")
        images = torch.randn(1, 3, 42, 28)
        torch.testing.assert_close(loaded(images).logits, stock(images).logits)


def test_shards(tmp_path):
    model = write_model(DINOv2Model, tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(load_model_folder(tmp_path / "shards").layernorm.weight, model.layernorm.weight)
    shards[0].unlink()
    with pytest.raises(ValueError, match="a file is damaged or missing"):
        load_model_folder(tmp_path / "shards")


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_a_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "no folder": (
        lambda folder: (folder / "config.json").unlink(),
        "has no config.json|holds weights, but no config.json",
    ),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds a list, but a JSON object"),
    "other model": (lambda folder: change_config(folder, model_type="vit"), "holds a model of type `vit`"),
    "field": (lambda folder: change_config(folder, hidden_size=33), "does not describe a DINOv2 model.*`hidden_size`"),
    "type": (
        lambda folder: change_config(folder, hidden_size="wide"),
        "does not describe a DINOv2 model.*hidden_size",
    ),
    "architecture": (
        lambda folder: change_config(folder, architectures=["ViTModel"]),
        r"is \['ViTModel'\], but one of",
    ),
    "no architecture": (lambda folder: change_config(folder, architectures=None), "is None, but one of DINOv2Model"),
    "no weights": (only_a_pickle, "has a config.json but neither model.safetensors nor"),
    "truncated": (truncate, "cannot be read, a file is damaged or missing"),
    "missing": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("layernorm.bias")),
        "lack `layernorm.bias`, which a DINOv2Model needs",
    ),
    "unexpected": (
        lambda folder: change_weights(folder, lambda weights: weights.update(a=torch.ones(1), b=torch.ones(1))),
        "hold `a`, `b`, which a DINOv2Model does not have",
    ),
    "head without a class": (
        lambda folder: change_config(folder, architectures=["DINOv2ForImageClassification"]),
        "lack `classifier.bias`",
    ),
    "shape": (
        lambda folder: change_config(folder, num_channels=1),
        r"has shape \(32, 3, 14, 14\), but its config.json describes a DINOv2Model with \(32, 1, 14, 14\)",
    ),
    "mask token": (
        lambda folder: change_weights(folder, lambda weights: weights.pop("embeddings.mask_token")),
        "lack `embeddings.mask_token`",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_sentence_for_what_is_wrong(tmp_path, name):
    damage, message = BROKEN[name]
    write_model(DINOv2Model, tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        load_model_folder(tmp_path)
    assert "\n" not in str(raised.value)
