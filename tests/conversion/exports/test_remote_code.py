"""One folder, two implementations: transformers' own, and ours as remote code."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, Dinov2Model

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2Model,
)
from dinov2_hf.conversion.exports.remote_code import export_dual
from dinov2_hf.conversion.model_folder import load_model_folder
from tests.conversion.model_folders import run_without_package, write_model, write_photograph


CASES = {
    "backbone": (DINOv2Model, {}),
    "classifier": (DINOv2ForImageClassification, {"num_labels": 3}),
    "registers": (DINOv2ForImageClassification, {"num_register_tokens": 2, "num_labels": 3}),
}
SIZE = (42, 70)  # of images, and not the native one: that is where the two differ

LOAD_BOTH = """
import json, torch
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import pipeline
from PIL import Image

images, image, found = torch.load("images.pt"), Image.open("image.png"), {}
for name in ("backbone", "classifier", "registers"):
    folder = f"dual/{name}"
    for trust in (None, True):
        options = {"trust_remote_code": trust} if trust else {}
        case = {}
        model = AutoModel.from_pretrained(folder, **options)
        processor = AutoImageProcessor.from_pretrained(folder, **options)
        config = AutoConfig.from_pretrained(folder, out_indices=[1, 2], **options)
        maps = AutoBackbone.from_config(config, **options)
        maps.load_state_dict(model.state_dict())
        with torch.no_grad():
            case["features"] = model(images).last_hidden_state
            case["feature_maps"] = maps.eval()(images).feature_maps
        case["pixel_values"] = processor(image, return_tensors="pt").pixel_values
        case["pipeline"] = pipeline("image-feature-extraction", model=folder, **options)(image, return_tensors=True)
        case["classes"] = [type(one).__module__ + "." + type(one).__name__ for one in (model, processor, config, maps)]
        if name != "backbone":
            model = AutoModelForImageClassification.from_pretrained(folder, **options)
            with torch.no_grad():
                case["logits"] = model(images).logits
        found[f"{name} {bool(trust)}"] = case
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of all, our models by name, and what a process without this package found."""
    root = tmp_path_factory.mktemp("dual")
    models = {name: write_model(kind, root / name, **fields) for name, (kind, fields) in CASES.items()}
    for name in CASES:
        export_dual(root / name, root / "dual" / name)
    write_photograph(root / "image.png")
    torch.save(torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)), root / "images.pt")
    run_without_package(LOAD_BOTH, root)
    return root, models, torch.load(root / "found.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_remote_code_is_ours_at_other_sizes_and_the_default_is_stock(exported, name):
    root, models, found = exported
    model, images = models[name], torch.load(root / "images.pt")
    backbone = getattr(model, "dinov2", model)
    features = backbone(images).last_hidden_state
    trusted, default = found[f"{name} True"], found[f"{name} False"]
    torch.testing.assert_close(trusted["features"], features, atol=1e-5, rtol=0)
    assert (default["features"] - features).abs().max() > 1e-3  # the interpolation of positions
    assert all(one.startswith("transformers_modules.") for one in trusted["classes"])
    assert all(one.startswith("transformers.models.") for one in default["classes"])
    assert [one.rsplit(".", 1)[1] for one in trusted["classes"]] == [
        "DINOv2Model", "DINOv2ImageProcessor", "DINOv2Config", "DINOv2Backbone",
    ]  # fmt: skip
    maps = DINOv2Backbone(type(model.config)(**model.config.to_dict() | {"out_indices": [1, 2], "out_features": None}))
    maps.load_state_dict(backbone.state_dict())
    for ours, theirs in zip(maps.eval()(images).feature_maps, trusted["feature_maps"], strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    processor = DINOv2ImageProcessor.from_pretrained(root / name)
    pixel_values = processor(Image.open(root / "image.png"), return_tensors="pt").pixel_values
    assert torch.equal(trusted["pixel_values"], pixel_values)
    assert torch.equal(default["pixel_values"], pixel_values)
    native = backbone(pixel_values).last_hidden_state
    for case in (trusted, default):  # at the native size
        torch.testing.assert_close(case["pipeline"], native, atol=1e-5, rtol=0)
    if name != "backbone":
        torch.testing.assert_close(trusted["logits"], model(images).logits, atol=1e-5, rtol=0)
        assert (default["logits"] - trusted["logits"]).abs().max() > 1e-4


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_beside_the_imported_package(exported, name):
    root, models, _ = exported
    folder, images = root / "dual" / name, torch.load(root / "images.pt")
    model = getattr(models[name], "dinov2", models[name])
    ours = DINOv2Model.from_pretrained(folder).eval()
    assert torch.equal(ours(images).last_hidden_state, model(images).last_hidden_state)
    assert AutoModel.from_pretrained(folder).__class__.__name__ in ("Dinov2Model", "Dinov2WithRegistersModel")
    loaded = load_model_folder(folder)
    assert type(loaded) is type(models[name])
    assert loaded.config.interpolate_offset == 0.1
    # No class was marked to copy its code into whatever is saved next.
    assert DINOv2Model._auto_class is None
    assert type(model.config)._auto_class is None
    assert DINOv2ImageProcessor._auto_class is None
    ours.save_pretrained(root / "again" / name)
    assert not list((root / "again" / name).glob("*.py"))
    assert "auto_map" not in json.loads((root / "again" / name / "config.json").read_text())


def test_remote_code_beside_the_imported_package(exported):
    """In a process of its own: loading remote code registers it with the Auto classes."""
    root, models, _ = exported
    code = """
import sys
sys.modules.pop("dinov2_hf")
sys.path.insert(0, SOURCE)
import torch, dinov2_hf
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("dual/classifier", trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(torch.load("images.pt")).logits, "logits.pt")
"""
    import dinov2_hf

    run_without_package(f"SOURCE = {str(dinov2_hf.__path__[0] + '/..')!r}\n" + code, root)
    with torch.no_grad():
        logits = models["classifier"](torch.load(root / "images.pt")).logits
    torch.testing.assert_close(torch.load(root / "logits.pt"), logits, atol=1e-5, rtol=0)


def test_the_folder(exported):
    root, _, _ = exported
    folder = root / "dual" / "classifier"
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "dinov2"
    assert config["architectures"] == ["Dinov2ForImageClassification"]
    assert config["interpolate_offset"] == 0.1
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    references = [*config["auto_map"].values(), *processor["auto_map"]["AutoImageProcessor"]]
    for file, name in (reference.split(".") for reference in references):
        assert f"class {name}(" in (folder / f"{file}.py").read_text()
    assert not any("from .." in path.read_text() for path in folder.glob("*.py"))
    assert 'AutoModel.from_pretrained(".", trust_remote_code=True)' in (folder / "README.md").read_text()
    stock = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(stock.dinov2, Dinov2Model)


def test_heads_that_stock_does_not_have(tmp_path):
    write_model(DINOv2ForSemanticSegmentation, tmp_path / "model")
    with pytest.raises(ValueError, match="transformers has no class for"):
        export_dual(tmp_path / "model", tmp_path / "dual")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
