"""Exports to transformers' own classes, loaded in a process that cannot import this package."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2WithRegistersModel, pipeline

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForPreTraining,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.conversion.exports.formats import ExportCheckError
from dinov2_hf.conversion.exports.stock_transformers import export_transformers
from tests.conversion.model_folders import run_without_package, write_model, write_photograph


ANTIALIASED = {"interpolate_offset": 0, "interpolate_antialias": True}
EXACT = {"interpolate_offset": 0.0}
CASES = {  # class, fields, stock model type
    "offset": (DINOv2Model, {}, "dinov2"),
    "no_offset": (DINOv2Model, {**EXACT, "mlp_ratio": 2.0, "qkv_bias": False}, "dinov2"),
    "antialiased": (DINOv2Model, ANTIALIASED, "dinov2_with_registers"),
    "registers": (DINOv2Model, {**ANTIALIASED, "num_register_tokens": 4}, "dinov2_with_registers"),
    "swiglu": (DINOv2Model, {**EXACT, "use_swiglu_ffn": True}, "dinov2"),
    "backbone": (DINOv2Backbone, {**EXACT, "out_indices": [0, 2], "num_channels": 4}, "dinov2"),
    "backbone_registers": (
        DINOv2Backbone,
        {**ANTIALIASED, "num_register_tokens": 2, "reshape_hidden_states": False, "apply_layernorm": False},
        "dinov2_with_registers",
    ),
    "classifier": (DINOv2ForImageClassification, {**EXACT, "id2label": {0: "cat", 1: "dog", 2: "owl"}}, "dinov2"),
    "classifier_antialiased": (DINOv2ForImageClassification, ANTIALIASED, "dinov2_with_registers"),
    "classifier_registers": (
        DINOv2ForImageClassification,
        {**ANTIALIASED, "num_register_tokens": 4, "num_labels": 5},
        "dinov2_with_registers",
    ),
}
SIZES = [(28, 28), (56, 84)]  # native, and a rectangle

LOAD_EVERYTHING = """
import json, torch, transformers
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
)
from PIL import Image

cases, sizes = json.load(open("cases.json"))
image, found = Image.open("image.png"), {}
for name, kind in cases.items():
    folder = f"exported/{name}"
    if kind == "DINOv2Model":
        model = AutoModel.from_pretrained(folder)
    elif kind == "DINOv2ForImageClassification":
        model = AutoModelForImageClassification.from_pretrained(folder)
    else:
        config = AutoConfig.from_pretrained(folder)
        model = getattr(transformers, config.architectures[0]).from_pretrained(folder)
    channels = model.config.num_channels
    outputs = []
    for height, width in sizes:
        images = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height))
        with torch.no_grad():
            result = model(images)
        outputs.append([result[key] for key in ("logits", "last_hidden_state") if key in result][:1])
        outputs[-1] = outputs[-1] or list(result.feature_maps)
    case = {"outputs": outputs, "class": type(model).__name__}
    if kind != "DINOv2Backbone":
        case["pixel_values"] = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
        case["features"] = pipeline("image-feature-extraction", model=folder)(image, return_tensors=True)
    if kind == "DINOv2ForImageClassification":
        case["labels"] = pipeline("image-classification", model=folder)(image, top_k=2)
    found[name] = case
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """For each case: our model, its folder, the report of its export, and what stock transformers computed."""
    root = tmp_path_factory.mktemp("stock")
    models = {name: write_model(kind, root / name, **fields) for name, (kind, fields, _) in CASES.items()}
    reports = {name: export_transformers(root / name, root / "exported" / name) for name in CASES}
    write_photograph(root / "image.png")
    (root / "cases.json").write_text(json.dumps([{name: kind.__name__ for name, (kind, *_) in CASES.items()}, SIZES]))
    run_without_package(LOAD_EVERYTHING, root)
    found = torch.load(root / "found.pt", weights_only=True)
    return {name: (models[name], root / "exported" / name, reports[name], found[name]) for name in CASES}


@torch.no_grad()
def our_outputs(model, size):
    height, width = size
    images = torch.randn(2, model.config.num_channels, height, width, generator=torch.Generator().manual_seed(height))
    outputs = model(images)
    if isinstance(model, DINOv2Backbone):
        return list(outputs.feature_maps)
    return [outputs.logits if isinstance(model, DINOv2ForImageClassification) else outputs.last_hidden_state]


@pytest.mark.parametrize("name", CASES)
def test_stock_transformers_computes_the_same(exported, name):
    model, folder, report, found = exported[name]
    _, fields, model_type = CASES[name]
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    assert found["class"] == json.loads((folder / "config.json").read_text())["architectures"][0]
    native, other = (
        max((ours - stock).abs().max().item() for ours, stock in zip(our_outputs(model, size), outputs, strict=True))
        for size, outputs in zip(SIZES, found["outputs"], strict=True)
    )
    assert native < 1e-5
    measured = {(m.height, m.width): m.max_difference for m in report.measurements}
    assert list(measured) == [(28, 28), (224, 224), (98, 98), (224, 308)]
    if fields.get("interpolate_offset", 0.1):
        assert other > 1e-3
        assert min(measured[size] for size in measured if size != (28, 28)) > 1e-4
        assert "offset 0.0 and antialias False, and this model was made with 0.1 and False" in report.notes[0]
    else:
        assert other < 1e-5
        assert max(measured.values()) < 1e-5
        assert not [note for note in report.notes if "not the same" in note]


@pytest.mark.parametrize("name", [name for name, (kind, *_) in CASES.items() if kind is not DINOv2Backbone])
def test_image_processor_and_pipelines_are_the_same(exported, name):
    model, folder, _, found = exported[name]
    ours = DINOv2ImageProcessor.from_pretrained(folder.parents[1] / name)
    image = folder.parents[1] / "image.png"
    assert torch.equal(found["pixel_values"], ours(Image.open(image), return_tensors="pt").pixel_values)
    backbone = model.dinov2 if isinstance(model, DINOv2ForImageClassification) else model
    features = pipeline("image-feature-extraction", model=backbone, image_processor=ours)
    torch.testing.assert_close(found["features"], features(str(image), return_tensors=True), atol=1e-5, rtol=0)
    if backbone is not model:
        labels = pipeline("image-classification", model=model, image_processor=ours)(str(image), top_k=2)
        assert [one["label"] for one in found["labels"]] == [one["label"] for one in labels]
        for stock, one in zip(found["labels"], labels, strict=True):
            assert stock["score"] == pytest.approx(one["score"], abs=1e-5)


def test_files_hold_stock_fields_and_the_same_weights(exported):
    model, folder, report, _ = exported["classifier_registers"]
    config = json.loads((folder / "config.json").read_text())
    assert not {"interpolate_offset", "interpolate_antialias", "classifier_num_layers", "auto_map"} & set(config)
    assert config["num_register_tokens"] == 4
    assert json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"] == "BitImageProcessor"
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("dinov2.", "dinov2_with_registers."): value for name, value in model.state_dict().items()}
    assert weights.keys() == renamed.keys()
    assert all(torch.equal(weights[name], renamed[name]) for name in weights)
    card = (folder / "README.md").read_text()
    assert "| 1 | 224 x 308 |" in card
    assert 'pipeline("image-classification", model=".")' in card
    assert "224 x 308" in str(report)
    assert json.loads((exported["classifier"][1] / "config.json").read_text())["id2label"]["2"] == "owl"


def test_an_export_loads_here_as_it_was(exported, tmp_path):
    """0 registers: the stock class has an empty tensor that ours has not."""
    model, folder, _, _ = exported["antialiased"]
    again = DINOv2Model.from_pretrained(folder)
    assert again.config.interpolate_antialias
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    export_transformers(folder, tmp_path / "twice")
    assert load_file(tmp_path / "twice" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


def test_half_precision_stays_bit_equal(tmp_path):
    model = write_model(DINOv2Model, tmp_path / "model", **ANTIALIASED, num_register_tokens=2).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    report = export_transformers(tmp_path / "model", tmp_path / "stock")
    stock = Dinov2WithRegistersModel.from_pretrained(tmp_path / "stock")
    assert stock.dtype == torch.bfloat16
    assert torch.equal(stock.embeddings.register_tokens, model.embeddings.register_tokens)
    assert max(measurement.max_difference for measurement in report.measurements) < 1e-5  # in float32


def test_the_card_of_the_source_travels(tmp_path):
    write_model(DINOv2Model, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [cells]\n---\n# Trained on cells\n")
    export_transformers(tmp_path / "model", tmp_path / "stock")
    card = (tmp_path / "stock" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "- cells" in card
    assert "# Trained on cells" in card


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (DINOv2ForSemanticSegmentation, {}, "DINOv2ForSemanticSegmentation, which transformers has no class for"),
        (DINOv2ForDepthEstimation, {}, "DINOv2ForDepthEstimation, which transformers has no class for"),
        (DINOv2ForImageClassification, {"classifier_num_layers": 2}, "`classifier_num_layers` is 2"),
        (DINOv2ForImageClassification, {"classifier_use_patch_mean": False}, "`classifier_use_patch_mean` is False"),
        (DINOv2Model, {"mlp_ratio": 2.5}, "`mlp_ratio` is 2.5"),
    ],
)
def test_what_stock_cannot_hold_is_refused(tmp_path, kind, fields, message):
    write_model(kind, tmp_path / "model", **fields)
    with pytest.raises(ValueError, match=message):
        export_transformers(tmp_path / "model", tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_pretraining_folder_is_refused(tmp_path, tiny_config):
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4
    )
    DINOv2ForPreTraining(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds student, teacher and heads"):
        export_transformers(tmp_path / "model", tmp_path / "stock")


def test_a_failed_check_leaves_nothing(tmp_path):
    model = write_model(DINOv2Model, tmp_path / "model")
    model.layernorm.weight.data[:] = 3e38  # features overflow, and infinity differs from itself
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportCheckError, match=r"differs by nan at 28 x 28 pixels"):
        export_transformers(tmp_path / "model", tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folders_in_use_are_kept(tmp_path):
    write_model(DINOv2Model, tmp_path / "model", **EXACT)
    (tmp_path / "stock").mkdir()
    (tmp_path / "stock" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="overwrite"):
        export_transformers(tmp_path / "model", tmp_path / "stock")
    with pytest.raises(ValueError, match="was not written by dinov2_hf"):
        export_transformers(tmp_path / "model", tmp_path / "stock", overwrite=True)
    assert (tmp_path / "stock" / "notes.txt").read_text() == "mine"
    for parent in (tmp_path / "model", tmp_path):
        with pytest.raises(ValueError, match="is the same as the source|is around the source"):
            export_transformers(tmp_path / "model", parent, overwrite=True)
    export_transformers(tmp_path / "model", tmp_path / "new")
    (tmp_path / "new" / "mine.txt").write_text("added later")
    with pytest.raises(ValueError, match=r"holds mine\.txt, which dinov2_hf did not write"):
        export_transformers(tmp_path / "model", tmp_path / "new", overwrite=True)
    (tmp_path / "new" / "mine.txt").unlink()
    export_transformers(tmp_path / "model", tmp_path / "new", overwrite=True)
