"""torch.hub.load of this repository, as code written for the original uses it."""

import runpy
from pathlib import Path

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ForImageClassification, DINOv2Model
from dinov2_hf.conversion import torch_hub
from dinov2_hf.conversion.original.to_original import convert_to_original


ROOT = str(Path(__file__).parents[2])
NAMES = [
    f"dinov2_vit{size}14{registers}{head}" for size in "sblg" for registers in ("", "_reg") for head in ("", "_lc")
]
SMALL = {"num_hidden_layers": 4, "image_size": 28, "hidden_size": 32, "num_attention_heads": 2}


def load(name: str, **options) -> torch.nn.Module:
    return torch.hub.load(ROOT, name, source="local", **options)


@pytest.fixture
def small(monkeypatch):
    """The released ViT-S, made small enough to be written to files."""
    monkeypatch.setitem(torch_hub.SIZES, "vits", ("small", SMALL))


def test_every_entry_point_is_there_and_explained():
    hubconf = runpy.run_path(str(Path(ROOT) / "hubconf.py"))
    for name in NAMES:
        assert "(B, 3, H, W)" in hubconf[name].__doc__


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dinov2_vits14", 22_056_576),
        ("dinov2_vits14_reg", 22_056_576 + 4 * 384),
        ("dinov2_vitb14", 86_580_480),
        ("dinov2_vits14_lc", 22_056_576 + (5 * 384 + 1) * 1000),
    ],
)
def test_sizes(name, parameters):
    """Specification, section 1.1."""
    model = load(name, pretrained=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("size", torch_hub.SIZES)
def test_released_configurations(size):
    for registers in (False, True):
        config = torch_hub.released_config(size, registers)
        assert config.image_size == 518
        assert config.hidden_size // config.num_attention_heads == 64
        assert (config.num_register_tokens, config.interpolate_offset, config.interpolate_antialias) == (
            (4, 0.0, True) if registers else (0, 0.1, False)
        )
    assert torch_hub.hub_id("vitb", True) == "facebook/dinov2-with-registers-base"


@torch.no_grad()
def test_the_originals_methods(small, spread):
    model = load("dinov2_vits14_reg", pretrained=False)
    network = spread(model.model)
    pixels, masks = torch.randn(2, 3, 28, 42), torch.rand(2, 6) < 0.5
    outputs = network(pixels, bool_masked_pos=masks, output_hidden_states=True)
    features = model(pixels, masks=masks, is_training=True)
    torch.testing.assert_close(features["x_norm_clstoken"], outputs.last_hidden_state[:, 0])
    torch.testing.assert_close(features["x_norm_regtokens"], outputs.last_hidden_state[:, 1:5])
    torch.testing.assert_close(features["x_norm_patchtokens"], outputs.last_hidden_state[:, 5:])
    torch.testing.assert_close(features["x_prenorm"], outputs.hidden_states[-1])
    assert features["masks"] is masks
    torch.testing.assert_close(model(pixels), network(pixels).pooler_output)
    (patches, cls), *_ = model.get_intermediate_layers(pixels, n=2, reshape=True, return_class_token=True)
    assert (patches.shape, cls.shape) == ((2, 32, 2, 3), (2, 32))
    assert (model.embed_dim, model.patch_size, model.num_heads, model.n_blocks) == (32, 14, 2, 4)


@pytest.mark.parametrize("registers", [False, True])
@torch.no_grad()
def test_weights_from_a_folder_and_from_a_file_of_the_original(tmp_path, small, spread, registers):
    name = "dinov2_vits14_reg" if registers else "dinov2_vits14"
    network = spread(DINOv2Model(torch_hub.released_config("vits", registers)))
    network.save_pretrained(tmp_path / "model")
    convert_to_original(tmp_path / "model", tmp_path / "backbone.pth")
    pixels = torch.randn(1, 3, 42, 42)
    for weights in (tmp_path / "model", tmp_path / "backbone.pth"):
        model = load(name, weights=str(weights))
        assert not model.training
        assert torch.equal(model(pixels), network(pixels).pooler_output)


@pytest.mark.parametrize("layers", [1, 4])
@torch.no_grad()
def test_linear_classifiers(tmp_path, small, spread, layers):
    config = torch_hub.released_config("vits", False, classifier_num_layers=layers, num_labels=1000)
    classifier = spread(DINOv2ForImageClassification(config))
    classifier.save_pretrained(tmp_path / "model")
    convert_to_original(tmp_path / "model", tmp_path / "head.pth", part="head")
    convert_to_original(tmp_path / "model", tmp_path / "backbone.pth")
    pixels = torch.randn(1, 3, 28, 28)
    for options in (
        {"weights": tmp_path / "model"},
        {"weights": tmp_path / "head.pth", "backbone_weights": tmp_path / "backbone.pth"},
    ):
        model = load("dinov2_vits14_lc", layers=layers, **{name: str(path) for name, path in options.items()})
        assert torch.equal(model(pixels), classifier(pixels).logits)


def test_mistakes_are_one_sentence(tmp_path, small):
    with pytest.raises(ValueError, match="`layers` is 2; it must be 1 or 4"):
        load("dinov2_vits14_lc", layers=2)
    with pytest.raises(ValueError, match="set `weights` to the original's dinov2_vits14_reg4_linear4_head.pth"):
        load("dinov2_vits14_reg_lc")
    with pytest.raises(ValueError, match="`pretrained` is False"):
        load("dinov2_vits14", pretrained=False, weights="folder")
    with pytest.raises(ValueError, match="image_size can be chosen with `pretrained=False` only"):
        load("dinov2_vits14", image_size=28)
    with pytest.raises(ValueError, match="No DINOv2Model can be read from facebook/dinov2-small"):
        load("dinov2_vits14")  # without a network
    DINOv2Model(DINOv2Config(**SMALL | {"num_hidden_layers": 3})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`num_hidden_layers` of .* is 3, but this entry point is for 4"):
        load("dinov2_vits14", weights=str(tmp_path))
