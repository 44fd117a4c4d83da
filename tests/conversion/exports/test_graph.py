"""Graphs for one image size: run from their files, beside the models they were made of."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from dinov2_hf.conversion.exports.formats import ExportCheckError
from dinov2_hf.conversion.exports.graph import FixedSizeEmbeddings, export_onnx, export_torch
from dinov2_hf.conversion.exports.image_processor_values import for_fixed_size
from tests.conversion.model_folders import write_model, write_photograph


REGISTERS = {"num_register_tokens": 3, "interpolate_offset": 0.0, "interpolate_antialias": True}
CASES = {  # class, fields, names of the outputs
    "model": (DINOv2Model, {}, ["last_hidden_state", "pooler_output"]),
    "swiglu": (DINOv2Model, {**REGISTERS, "use_swiglu_ffn": True}, ["last_hidden_state", "pooler_output"]),
    "backbone": (DINOv2Backbone, {"out_indices": [0, 2], "num_channels": 4}, ["stem", "stage2"]),
    "classifier": (DINOv2ForImageClassification, {"classifier_num_layers": 2, "id2label": {0: "cat"}}, ["logits"]),
    "segmentation": (DINOv2ForSemanticSegmentation, {**REGISTERS, "segmentation_num_layers": 2}, ["logits"]),
    "depth": (DINOv2ForDepthEstimation, {"depth_layers": [0, 1]}, ["predicted_depth"]),
}
HEIGHT, WIDTH = 42, 70

onnx_installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")),
    reason='needs the extra "onnx"',
)


def run_onnx(folder, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {"pixel_values": images.numpy()})
    return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}


def run_torch(folder, images):
    return torch.export.load(folder / "model.pt2").module()(images)


def onnx_shapes(folder):
    import onnx

    return [tuple(tensor.dims) for tensor in onnx.load(folder / "model.onnx").graph.initializer]


def torch_shapes(folder):
    program = torch.export.load(folder / "model.pt2")
    return [tuple(tensor.shape) for tensor in [*program.state_dict.values(), *program.constants.values()]]


FORMATS = [
    pytest.param(export_onnx, run_onnx, onnx_shapes, marks=onnx_installed, id="onnx"),
    pytest.param(export_torch, run_torch, torch_shapes, id="torch"),
]


@torch.no_grad()
def expected_outputs(model, images, names):
    outputs = model(images)
    if isinstance(model, DINOv2Backbone):
        return dict(zip(names, outputs.feature_maps, strict=True))
    return {name: outputs[name] for name in names}


@pytest.mark.parametrize(("export", "run", "shapes"), FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_the_file_computes_what_the_model_does(tmp_path, capfd, name, export, run, shapes):
    kind, fields, names = CASES[name]
    model = write_model(kind, tmp_path / "model", **fields)
    capfd.readouterr()
    report = export(tmp_path / "model", tmp_path / "graph", image_size=(HEIGHT, WIDTH))
    assert capfd.readouterr().out == ""
    for batch_size in (1, 2, 5):
        images = torch.randn(batch_size, model.config.num_channels, HEIGHT, WIDTH)
        expected, found = expected_outputs(model, images, names), run(tmp_path / "graph", images)
        assert list(found) == names
        for key in names:
            torch.testing.assert_close(found[key], expected[key], atol=1e-4, rtol=1e-4)
    assert [(m.batch_size, m.height, m.width) for m in report.measurements] == [(1, 42, 70), (3, 42, 70)]
    assert max(m.max_difference / m.largest_value for m in report.measurements) < 1e-4
    # The positions of 3 x 5 patches are there, those of the stored 2 x 2 and the mask token are not.
    positions = model.dinov2.embeddings if hasattr(model, "dinov2") else model.embeddings
    assert (1, 15, 32) in shapes(tmp_path / "graph")
    assert tuple(positions.position_embeddings.shape) not in shapes(tmp_path / "graph")
    assert tuple(positions.mask_token.shape) not in shapes(tmp_path / "graph")


@pytest.mark.parametrize(("export", "run", "shapes"), FORMATS)
def test_a_fixed_batch_and_other_sizes_are_refused_by_the_graph(tmp_path, export, run, shapes):
    model = write_model(DINOv2Model, tmp_path / "model", **REGISTERS)
    report = export(tmp_path / "model", tmp_path / "graph", image_size=[28], batch_size=2)
    assert [(m.batch_size, m.height, m.width) for m in report.measurements] == [(2, 28, 28)]
    images = torch.randn(2, 3, 28, 28)
    expected = expected_outputs(model, images, ["pooler_output"])
    torch.testing.assert_close(
        run(tmp_path / "graph", images)["pooler_output"], expected["pooler_output"], atol=1e-4, rtol=1e-4
    )
    for shape in [(3, 3, 28, 28), (2, 3, 28, 42)]:
        with pytest.raises(Exception, match=r"(?i)dimension|guard|expected"):
            run(tmp_path / "graph", torch.randn(shape))


@pytest.mark.parametrize(("export", "run", "shapes"), FORMATS)
def test_the_code_of_the_card_runs(tmp_path, monkeypatch, export, run, shapes):
    model = write_model(DINOv2ForImageClassification, tmp_path / "model", id2label={0: "cat", 1: "dog"})
    export(tmp_path / "model", tmp_path / "graph", image_size=[42])
    monkeypatch.chdir(tmp_path / "graph")
    write_photograph(tmp_path / "photograph.png")
    Image.open(tmp_path / "photograph.png").save("image.jpg")
    code = re.search(r"```python\n(.*?)```", (tmp_path / "graph" / "README.md").read_text(), re.DOTALL).group(1)
    names = {}
    exec(code, names)
    logits = torch.as_tensor(names["outputs"]["logits"])
    images = names["pixel_values"]
    assert images.shape == (1, 3, 42, 42)
    torch.testing.assert_close(logits, expected_outputs(model, images, ["logits"])["logits"], atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "graph" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert config["architectures"] == ["DINOv2ForImageClassification"]


@onnx_installed
def test_the_onnx_file(tmp_path):
    import onnx

    model = write_model(DINOv2Model, tmp_path / "model").to(torch.bfloat16)  # graphs are float32
    model.save_pretrained(tmp_path / "model")
    export_onnx(tmp_path / "model", tmp_path / "graph", image_size=(HEIGHT, WIDTH), opset=18)
    file = onnx.load(tmp_path / "graph" / "model.onnx")
    onnx.checker.check_model(file)
    assert {entry.domain: entry.version for entry in file.opset_import}[""] == 18
    images = file.graph.input[0].type.tensor_type
    assert images.elem_type == onnx.TensorProto.FLOAT
    assert [size.dim_param or size.dim_value for size in images.shape.dim] == ["batch", 3, HEIGHT, WIDTH]
    assert str(Path(__file__).parents[3]) not in str(file)  # no path of the machine that exported


def test_fixed_size_embeddings_are_the_embeddings():
    from dinov2_hf import DINOv2Config
    from dinov2_hf.models.modeling_dinov2 import DINOv2Embeddings

    config = DINOv2Config(hidden_size=32, num_attention_heads=2, image_size=28, num_register_tokens=2)
    embeddings = DINOv2Embeddings(config)
    for parameter in embeddings.parameters():
        torch.nn.init.normal_(parameter)
    for grid in [(2, 2), (3, 5), (1, 4)]:
        images = torch.randn(2, 3, grid[0] * 14, grid[1] * 14)
        torch.testing.assert_close(FixedSizeEmbeddings(embeddings, grid)(images), embeddings(images))


@pytest.mark.parametrize(
    ("values", "size", "expected"),
    [
        # The original's 256 and 224, at 518: 592 in proportion.
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, (518, 518), 592),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, (224, 448), 512),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, (224, 224), 256),
        ({"size": {"shortest_edge": 256}, "do_center_crop": False, "crop_size": 224}, (98, 98), 98),
        ({"size": {"shortest_edge": 200}, "do_center_crop": True, "crop_size": 224}, (448, 448), 448),
        ({"size": {"image_size": [30, 30]}, "do_center_crop": False, "crop_size": 224}, (98, 42), None),
    ],
)
def test_the_image_processor_gives_the_size_of_the_graph(tmp_path, values, size, expected):
    values["crop_size"] = {"height": values["crop_size"], "width": values["crop_size"]}
    fixed = for_fixed_size({"image_processor_type": "BitImageProcessor", **values}, *size)
    assert fixed["size"] == ({"shortest_edge": expected} if expected else {"height": size[0], "width": size[1]})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fixed))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for shape in [(50, 80), (300, 31)]:
        pixel_values = processor(Image.new("RGB", shape, "white"), return_tensors="pt").pixel_values
        assert pixel_values.shape[-2:] == size
        assert (pixel_values[0, 0] == pixel_values[0, 0, 0, 0]).all()  # filled by the image, without a border


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": [40, 28]}, "would be 40 x 28 pixels, but multiples of the model's patch size, 14"),
        ({"image_size": [28, 0]}, "would be 28 x 0 pixels"),
        ({"image_size": [28, 28], "batch_size": 0}, "`batch_size` is 0"),
    ],
)
def test_impossible_sizes(tmp_path, options, message):
    write_model(DINOv2Model, tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        export_torch(tmp_path / "model", tmp_path / "graph", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@onnx_installed
@pytest.mark.parametrize("opset", [17, 999])
def test_impossible_operators(tmp_path, opset):
    write_model(DINOv2Model, tmp_path / "model")
    with pytest.raises(ValueError, match=f"`opset` is {opset}"):
        export_onnx(tmp_path / "model", tmp_path / "graph", image_size=[28], opset=opset)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("export", "run", "shapes"), FORMATS)
def test_a_failed_check_leaves_nothing(tmp_path, export, run, shapes):
    model = write_model(DINOv2Model, tmp_path / "model")
    model.layernorm.weight.data[:] = 3e38  # features overflow, and infinity differs from itself
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportCheckError, match="differs by nan for 1 images"):
        export(tmp_path / "model", tmp_path / "graph", image_size=[28])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(ImportError, match=r'needs onnxscript.*: pip install "dinov2_hf\[onnx\]"'):
        export_onnx(tmp_path / "model", tmp_path / "graph", image_size=[28])
