"""What is no model folder, named where a model is: files of the original and of timm, checkpoints of a run."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from dinov2_hf import DINOv2ForPreTraining, DINOv2ImageProcessor, DINOv2Model, DINOv2PreTrainingConfig
from dinov2_hf.cli import main
from dinov2_hf.conversion.other_layouts import model_folder
from dinov2_hf.conversion.saved_models import load_backbone, load_network, load_network_and_processor
from dinov2_hf.runs.initial_weights import load_initial_model
from dinov2_hf.training.checkpointing.checkpoint_manifest import write_manifest


@pytest.fixture
def original(tmp_path, tiny_config, spread):
    """A .pth file with the record that this package writes, and the folder that it was made of."""
    spread(DINOv2Model(tiny_config)).save_pretrained(tmp_path / "model")
    processor = DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "model")
    main(["convert", str(tmp_path / "model"), str(tmp_path / "original.pth")])
    return tmp_path / "original.pth"


@pytest.fixture
def checkpoint(tmp_path, tiny_config, spread):
    """As a run leaves it."""
    config = DINOv2PreTrainingConfig(backbone_config=tiny_config.to_dict(), num_prototypes=8, head_hidden_size=8)
    model = spread(DINOv2ForPreTraining(config))
    folder = tmp_path / "run" / "checkpoints" / "step_0000004"
    folder.mkdir(parents=True)
    recipe = {"train_data": "x", "eval_resize_size": 40, "num_prototypes": 8, "head_hidden_size": 8}
    recipe |= {name: getattr(tiny_config, name) for name in ("hidden_size", "num_hidden_layers", "patch_size")}
    recipe |= {name: getattr(tiny_config, name) for name in ("num_attention_heads", "image_size", "layerscale_value")}
    (folder / "run_state.json").write_text(json.dumps({"step": 4, "recipe": recipe}))
    keep(folder, model.state_dict())
    return folder


def keep(checkpoint, weights):
    """With the manifest that belongs to them."""
    save_file(weights, checkpoint / "model.safetensors")
    write_manifest(checkpoint)


def features(model, images, output):
    main(["features", str(model), "--data", str(images), "--output", str(output)])
    return np.load(output)


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.effect_noise((40, 44), 60 + number).convert("RGB").save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def test_features_of_a_file_of_the_original(tmp_path, original, images):
    found = features(original, images, tmp_path / "a.npy")
    np.testing.assert_array_equal(found, features(tmp_path / "model", images, tmp_path / "b.npy"))


def test_an_export_of_a_file_of_the_original(tmp_path, original):
    words = ["export", str(original), "--format", "transformers", "--output_dir", str(tmp_path / "stock")]
    main(words)
    stock = load_file(tmp_path / "stock" / "model.safetensors")
    expected = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(stock[name], tensor) for name, tensor in expected.items())
    assert DINOv2ImageProcessor.from_pretrained(tmp_path / "stock").size["shortest_edge"] == 36


def test_a_checkpoint_of_a_run(tmp_path, checkpoint, images):
    weights = load_file(checkpoint / "model.safetensors")
    for network in (load_backbone(checkpoint), load_network(checkpoint)):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, weights[f"teacher.backbone.{name}"])
    _, processor = load_network_and_processor(checkpoint)
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (40, 32)
    whole = load_initial_model(str(checkpoint))
    assert isinstance(whole, DINOv2ForPreTraining)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in whole.state_dict().items())
    with model_folder(checkpoint) as folder:
        expected = features(folder, images, tmp_path / "a.npy")
    np.testing.assert_array_equal(features(checkpoint, images, tmp_path / "b.npy"), expected)
    main(["convert", str(checkpoint), str(tmp_path / "x.pth")])
    np.testing.assert_array_equal(features(tmp_path / "x.pth", images, tmp_path / "c.npy"), expected)


def test_a_folder_of_a_checkpoint(tmp_path, checkpoint):
    main(["convert", str(checkpoint.parent / "latest"), str(tmp_path / "made")])
    weights, made = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "made" / "model.safetensors")
    assert all(torch.equal(tensor, weights[f"teacher.backbone.{name}"]) for name, tensor in made.items())
    assert isinstance(load_initial_model(str(tmp_path / "made" / "pretraining_model")), DINOv2ForPreTraining)
    assert DINOv2ImageProcessor.from_pretrained(tmp_path / "made").size["shortest_edge"] == 40
    card = ModelCard.load(tmp_path / "made" / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert "# run\n" in card.text
    assert "the averaged teacher after 4 of 125000 steps" in " ".join(card.text.split())
    assert "num_prototypes: 8\n" in card.text
    assert "Not measured." in card.text


def test_a_damaged_checkpoint_is_one_sentence(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    keep(checkpoint, {"students.small.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="does not hold the network that its recipe describes"):
        load_backbone(checkpoint)
    with pytest.raises(ValueError, match="a run with one student, which has no name; name .*4, without /small"):
        load_backbone(checkpoint / "small")
    next(iter(weights.values())).fill_(torch.nan)
    keep(checkpoint, weights)
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_backbone(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="is damaged: its model.safetensors has 100 bytes"):
        load_backbone(checkpoint)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match="cannot be read"):
        load_backbone(checkpoint)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("swiglu", [False, True])
def test_timm_gives_the_same_features(tmp_path, registers, swiglu):
    timm = pytest.importorskip("timm")
    options = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU} if swiglu else {}
    network = timm.models.VisionTransformer(
        img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=1, init_values=1.0, num_classes=0,
        mlp_ratio=2.75 * 2 if swiglu else 4, reg_tokens=registers, no_embed_class=registers > 0, **options,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    main(["convert", str(tmp_path / "timm.safetensors"), str(tmp_path / "model")])
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = network.forward_features(pixels)
        for model in (load_backbone(tmp_path / "timm.safetensors"), load_network(tmp_path / "model")):
            torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-4, rtol=1e-4)


def test_other_files_are_refused(tmp_path):
    save_file({"weight": torch.zeros(2, 2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is of no known kind, with `weight`"):
        load_backbone(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read"):
        load_backbone(tmp_path / "x.safetensors")
