"""Checkpoints of transformers' own DINOv2 classes, in every layout they are written in, load into ours."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ViTConfig,
)

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForImageClassification,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
STOCK = {
    "dinov2": (Dinov2Config, Dinov2Model, Dinov2ForImageClassification),
    "dinov2_with_registers": (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        Dinov2WithRegistersForImageClassification,
    ),
}


@pytest.fixture(params=STOCK)
def kind(request):
    return request.param


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("original_format", [True, False])
@pytest.mark.parametrize("our_class", [DINOv2Model, DINOv2Backbone])
def test_backbones(tmp_path, spread, kind, swiglu, original_format, our_class):
    config_class, model_class, _ = STOCK[kind]
    stock = spread(model_class(config_class(**SHAPE, use_swiglu_ffn=swiglu)))
    stock.save_pretrained(tmp_path, save_original_format=original_format)
    if not original_format:  # the names that the modules have in memory, which depend on transformers' version
        assert load_file(tmp_path / "model.safetensors").keys() == dict(stock.named_parameters()).keys()

    model, report = our_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = stock(pixels).last_hidden_state
        if our_class is DINOv2Backbone:
            model.config.reshape_hidden_states = False
            tokens = model(pixels).feature_maps[-1]
        else:
            tokens = model(pixels).last_hidden_state
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)

    # Saved again, it is a checkpoint of ours, whatever it was before.
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == dict(model.named_parameters()).keys()
    again = AutoModel.from_pretrained(tmp_path / "again")
    assert type(again) is DINOv2Model
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("original_format", [True, False])
def test_classifiers(tmp_path, spread, kind, original_format):
    config_class, _, classifier_class = STOCK[kind]
    labels = {0: "cat", 1: "dog", 2: "eel"}
    config = config_class(**SHAPE, id2label=labels, label2id={name: index for index, name in labels.items()})
    stock = spread(classifier_class(config))
    stock.save_pretrained(tmp_path, save_original_format=original_format)
    model, report = DINOv2ForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == labels
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, stock(pixels).logits, atol=1e-5, rtol=1e-5)
        features = DINOv2Model.from_pretrained(tmp_path)(pixels).last_hidden_state
        torch.testing.assert_close(features, model.dinov2(pixels).last_hidden_state)
    model.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == dict(model.named_parameters()).keys()


def test_configurations_are_translated(tmp_path, recwarn):
    Dinov2Config(**SHAPE, drop_path_rate=0.1, out_indices=[1, 2]).save_pretrained(tmp_path)
    config = DINOv2Config.from_pretrained(tmp_path)
    assert config.model_type == "dinov2_hf"
    assert (config.num_register_tokens, config.interpolate_offset, config.interpolate_antialias) == (0, 0.1, False)
    assert (config.hidden_size, config.drop_path_rate, config.out_features) == (32, 0.1, ["stage1", "stage2"])
    assert DINOv2Config.from_pretrained(tmp_path, interpolate_offset=0.0).interpolate_offset == 0
    Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=3).save_pretrained(tmp_path)
    config = DINOv2Config.from_pretrained(tmp_path)
    assert (config.num_register_tokens, config.interpolate_offset, config.interpolate_antialias) == (3, 0.0, True)
    assert not [warning for warning in recwarn if "of type" in str(warning.message)]
    for name in ("hidden_dropout_prob", "use_mask_token"):
        assert not hasattr(config, name)
    assert type(AutoConfig.from_pretrained(tmp_path)) is Dinov2WithRegistersConfig  # stock stays stock


def test_fields_that_a_stock_file_leaves_out_have_the_stock_defaults(tmp_path):
    for kind, stock in (("dinov2", Dinov2Config()), ("dinov2_with_registers", Dinov2WithRegistersConfig())):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        config = DINOv2Config.from_pretrained(tmp_path)
        for name in ("hidden_size", "num_hidden_layers", "patch_size", "image_size", "mlp_ratio", "layer_norm_eps"):
            assert getattr(config, name) == getattr(stock, name)


def test_other_kinds_are_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a model of type `vit`, but `dinov2_hf`, `dinov2` or"):
        DINOv2Model.from_pretrained(tmp_path)
    DINOv2PreTrainingConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoModelForPreTraining loads"):
        DINOv2Model.from_pretrained(tmp_path)
    Dinov2Config(**(SHAPE | {"image_size": [32, 64]})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"`image_size` of .* is \[32, 64\], but one number"):
        DINOv2Config.from_pretrained(tmp_path)
    Dinov2Config(**(SHAPE | {"image_size": [32, 32]})).save_pretrained(tmp_path)
    assert DINOv2Config.from_pretrained(tmp_path).image_size == 32


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classifier_num_layers", 3, "`classifier_num_layers` is 3; it must be between 1 and"),
        ("segmentation_num_layers", 0, "`segmentation_num_layers` is 0"),
        ("depth_layers", [0, 2], "blocks from 0 to 1"),
        ("max_depth", 0.001, "the first must be below the second"),
    ],
)
def test_heads_that_do_not_fit_are_refused(field, value, message):
    with pytest.raises(StrictDataclassError, match=message):
        DINOv2Config(**SHAPE, **{field: value})
