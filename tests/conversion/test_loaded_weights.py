"""Weights that are missing, damaged or no numbers are an error with their names, wherever a command loads a model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Dinov2Config, Dinov2Model, ViTConfig, ViTForImageClassification, ViTModel

from dinov2_hf import (
    DINOv2ForImageClassification,
    DINOv2ForPreTraining,
    DINOv2ImageProcessor,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.conversion.original.from_original import convert_from_original
from dinov2_hf.conversion.saved_models import load_image_processor, load_network
from dinov2_hf.runs.initial_weights import load_initial_model
from tests.conversion.model_folders import write_model
from tests.conversion.original.layouts import backbone_shapes, fill


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def edit_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop_all(weights):
    weights.clear()


def drop_block(weights):
    for name in [name for name in weights if "layer.1." in name]:
        del weights[name]


def not_a_number(weights):
    weights["layernorm.bias"][3] = torch.nan


def infinite(weights):
    weights["layernorm.weight"][0] = torch.inf


def rename(weights):
    for name in list(weights):
        weights[f"module.{name}"] = weights.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_all, "lack .* more, which a DINOv2Model needs"),
        (drop_block, "lack `encoder.layer.1.* more, which a DINOv2Model needs"),
        (rename, "lack `embeddings.cls_token`"),
        (not_a_number, "are NaN or infinite, in `layernorm.bias` of 43 tensors"),
        (infinite, "are NaN or infinite, in `layernorm.weight` of"),
    ],
)
def test_no_network_with_other_numbers_is_loaded(tmp_path, change, message):
    write_model(DINOv2Model, tmp_path)
    change_weights(tmp_path, change)
    for load in (load_network, load_initial_model):
        with pytest.raises(ValueError, match=message) as raised:
            load(tmp_path)
        assert "\n" not in str(raised.value)
    AutoModel.from_pretrained(tmp_path)  # of transformers, which keeps its own behaviour


def test_whole_numbers_are_no_weights(tmp_path):
    write_model(DINOv2Model, tmp_path)
    change_weights(tmp_path, lambda weights: weights.update(dict.fromkeys(["layernorm.bias"], torch.ones(32).int())))
    for load in (load_network, load_initial_model):
        with pytest.raises(ValueError, match=r"are whole numbers \(I32\) in `layernorm.bias`, but weights are"):
            load(tmp_path)


def test_a_damaged_file_is_one_sentence(tmp_path):
    write_model(DINOv2Model, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for load in (load_network, load_initial_model):
        with pytest.raises(ValueError, match="cannot be read, a file is damaged or missing") as raised:
            load(tmp_path)
        assert "\n" not in str(raised.value)
    weights.unlink()
    for load in (load_network, load_initial_model):
        with pytest.raises(ValueError, match="damaged or missing|neither model.safetensors"):
            load(tmp_path)


class Planted:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_a_pickle_of_more_than_weights_is_one_sentence(tmp_path):
    write_model(DINOv2Model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"layernorm.bias": Planted(tmp_path / "it ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="are a pickle that asks for more than tensors") as raised:
        load_network(tmp_path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_python_in_a_model_folder_is_neither_run_nor_asked_for(tmp_path, monkeypatch, file):
    """transformers asks at the terminal, and takes the answer of whatever is piped in."""
    write_model(DINOv2Model, tmp_path)
    DINOv2ImageProcessor().save_pretrained(tmp_path)
    ran = tmp_path / "it ran"
    (tmp_path / "planted.py").write_text(f"open({str(ran)!r}, 'w')\n\n\nclass Planted:\n    pass\n")
    change = {"AutoConfig": "planted.Planted", "AutoImageProcessor": "planted.Planted"}
    change = {"auto_map": change, "model_type": "planted", "image_processor_type": "Planted"}
    edit_json(tmp_path / file, **change)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    load = load_network if file == "config.json" else load_image_processor
    with pytest.raises(ValueError, match="can be read|can read"):
        load(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    "change", [{"patch_size": 0}, {"hidden_size": "x"}, {"layer_norm_eps": -1.0}, {"dtype": "planted"}]
)
def test_a_configuration_out_of_range_is_one_sentence(tmp_path, change):
    write_model(DINOv2Model, tmp_path)
    edit_json(tmp_path / "config.json", **change)
    with pytest.raises(ValueError, match="has no configuration that transformers can read") as raised:
        load_network(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": [0.5, float("nan"), 0.5]},
        {"image_std": [0.0, 1.0, 1.0]},
        {"rescale_factor": float("inf")},
        {"size": {"shortest_edge": -4}},
        {"size": {"shortest_edge": 10**7}},
        {"crop_size": {"height": 10**6, "width": 28}},
    ],
)
def test_an_image_processor_out_of_range_is_refused(tmp_path, change):
    """Its features would be NaN, or take all memory."""
    DINOv2ImageProcessor().save_pretrained(tmp_path)
    load_image_processor(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", **change)
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` of the image processor of .* holds"):
        load_image_processor(tmp_path)


def test_backbones_of_heads_and_of_others(tmp_path):
    model = write_model(DINOv2ForImageClassification, tmp_path / "classifier", num_labels=3)
    loaded = load_network(tmp_path / "classifier")
    assert type(loaded) is DINOv2Model
    assert torch.equal(loaded.layernorm.weight, model.dinov2.layernorm.weight)
    Dinov2Model(Dinov2Config(**VIT, use_mask_token=False)).save_pretrained(tmp_path / "stock")
    assert type(load_network(tmp_path / "stock")) is DINOv2Model
    ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    loaded = load_network(tmp_path / "vit")
    assert type(loaded) is ViTModel
    assert loaded.pooler is None  # its random numbers would be features


def test_heads_of_a_pretraining_must_be_there(tmp_path):
    config = DINOv2PreTrainingConfig(
        backbone_config=VIT | {"model_type": "dinov2_hf"}, num_prototypes=8, head_hidden_size=8, bottleneck_size=4
    )
    DINOv2ForPreTraining(config).save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("teacher.dino_head.mlp.0.bias"))
    with pytest.raises(ValueError, match="lack `teacher.dino_head.mlp.0.bias`"):
        load_initial_model(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * torch.nan, r"x\.pth hold values that are NaN or infinite, in `norm.weight` of"),
        (lambda tensor: tensor.int(), r"x\.pth: `norm.weight` holds values of int32, but .* floating-point"),
        (lambda tensor: tensor.to_sparse(), r"x\.pth: `norm.weight` is a sparse_coo tensor"),
    ],
)
@pytest.mark.parametrize("names", [("norm.weight",), tuple(backbone_shapes())])
def test_files_of_the_original(tmp_path, change, message, names):
    state = fill(backbone_shapes())
    state |= {name: change(state[name]) for name in names}
    torch.save(state, tmp_path / "x.pth")
    message = message if len(names) == 1 else r"x\.pth"
    with pytest.raises(ValueError, match=message):
        convert_from_original(tmp_path / "x.pth", tmp_path / "model", num_attention_heads=2)
    assert not (tmp_path / "model").exists()
