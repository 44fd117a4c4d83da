"""The `dinov2-hf` command, as it is typed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForDepthEstimation, Dinov2Model, pipeline

from dinov2_hf import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ImageProcessor,
    DINOv2Model,
)
from dinov2_hf.cli import main
from dinov2_hf.cli.main import COMMANDS


@pytest.fixture
def folder(tmp_path, tiny_config, spread):
    spread(DINOv2Model(tiny_config)).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def run(*words) -> None:
    main([str(word) for word in words])


def mistake(capsys, *words) -> str:
    """The sentence on standard error; there must be exactly one line, and no traceback."""
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert isinstance(stop.value.code, str)
    assert stop.value.code.startswith("error: ")
    assert "\n" not in stop.value.code
    return stop.value.code


def test_convert_there_and_back(tmp_path, capsys, folder):
    run("convert", folder, tmp_path / "original.pth")
    run("convert", tmp_path / "original.pth", tmp_path / "again", "--num_attention_heads", 2)
    assert "original.pth holds a backbone: 2 blocks of 32 channels, 2 heads, MLP" in capsys.readouterr().out
    model, again = DINOv2Model.from_pretrained(folder), DINOv2Model.from_pretrained(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    run("convert", folder, tmp_path / "chunked.pth", "--block_chunks", 2)
    assert "blocks.1.1.norm1.weight" in torch.load(tmp_path / "chunked.pth")


def test_convert_a_classifier(tmp_path, tiny_config, spread, folder):
    tiny_config.num_labels = 3
    classifier = spread(DINOv2ForImageClassification(tiny_config))
    classifier.save_pretrained(tmp_path / "classifier")
    run("convert", tmp_path / "classifier", tmp_path / "head.pth", "--part", "head")
    (tmp_path / "labels.json").write_text(json.dumps(["cat", "dog", "eel"]))
    run(
        "convert", tmp_path / "head.pth", tmp_path / "again", "--backbone", folder, "--id2label",
        tmp_path / "labels.json",
    )  # fmt: skip
    again = DINOv2ForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again.classifier.weight, classifier.classifier.weight)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    image = Image.linear_gradient("L").convert("RGB")
    answers = pipeline("image-classification", model=str(tmp_path / "again"))(image, top_k=3)
    assert {answer["label"] for answer in answers} == {"cat", "dog", "eel"}


def test_a_converted_depth_head_in_the_pipeline(tmp_path, folder, spread):
    """Images of any size: padded to patches on the way in, and cut on the way out."""
    config = DINOv2Config.from_pretrained(folder)
    config.max_depth = 80.0
    spread(DINOv2ForDepthEstimation(config)).save_pretrained(tmp_path / "depth")
    run("convert", tmp_path / "depth", tmp_path / "head.pth", "--part", "head")
    run(
        "convert", tmp_path / "head.pth", tmp_path / "again", "--backbone", folder, "--depth_range", "0.001", "80"
    )  # fmt: skip
    assert AutoModelForDepthEstimation.from_pretrained(tmp_path / "again").config.max_depth == 80
    answer = pipeline("depth-estimation", model=str(tmp_path / "again"))(
        Image.effect_noise((50, 39), 90).convert("RGB")
    )
    assert answer["predicted_depth"].shape == (39, 50)
    assert answer["depth"].size == (50, 39)
    run(
        "export",
        tmp_path / "again",
        "--format",
        "torch-export",
        "--output_dir",
        tmp_path / "pt2",
        "--image_size",
        24,
        40,
    )
    graph = torch.export.load(tmp_path / "pt2" / "model.pt2").module()
    assert graph(torch.zeros(2, 3, 24, 40))["predicted_depth"].shape == (2, 12, 20)


def test_export_to_transformers(tmp_path, capsys, folder):
    run("export", folder, "--format", "transformers", "--output_dir", tmp_path / "stock")
    assert "offset" in capsys.readouterr().out  # of the interpolation, which stock does not have
    stock, model = Dinov2Model.from_pretrained(tmp_path / "stock"), DINOv2Model.from_pretrained(folder)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).pooler_output, model(pixels).pooler_output, atol=1e-5, rtol=1e-5)


def test_export_to_onnx(tmp_path, folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    run("export", folder, "--format", "onnx", "--output_dir", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    pixels = torch.randn(2, 3, 32, 32)  # the crop of the image processor
    with torch.no_grad():
        expected = DINOv2Model.from_pretrained(folder)(pixels).pooler_output
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"pixel_values": pixels.numpy()}), strict=True))
    np.testing.assert_allclose(outputs["pooler_output"], expected.numpy(), atol=1e-4)


def test_features(tmp_path, capsys, folder):
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((40, 40), 60).convert("RGB").save(images / name / f"{number}.png")
    run("features", folder, "--data", images, "--output", tmp_path / "features.npy", "--kind", "mean_patch")
    assert "6 rows of shape (32,)" in capsys.readouterr().out
    assert np.load(tmp_path / "features.npy").shape == (6, 32)


def test_mistakes_are_one_sentence(tmp_path, capsys, folder):
    assert "none.pth is not a file" in mistake(capsys, "convert", tmp_path / "none.pth", tmp_path / "new")
    assert "leave `--block_chunks` out" in mistake(capsys, "convert", __file__, tmp_path / "new", "--block_chunks", 2)
    assert "leave `--backbone` out" in mistake(capsys, "convert", folder, tmp_path / "x.pth", "--backbone", "y")
    assert "leave `--image_size` out" in mistake(
        capsys, "export", folder, "--format", "dual", "--output_dir", tmp_path / "new", "--image_size", 32
    )
    assert "leave `--opset` out" in mistake(
        capsys, "export", folder, "--format", "torch-export", "--output_dir", tmp_path / "new", "--opset", 18
    )
    assert "give one, or height and width" in mistake(
        capsys, "export", folder, "--format", "onnx", "--output_dir", tmp_path / "new", "--image_size", 1, 2, 3
    )
    assert "multiples of the model's patch size, 8" in mistake(
        capsys, "export", folder, "--format", "onnx", "--output_dir", tmp_path / "new", "--image_size", 30
    )
    assert "--id2label is" in mistake(capsys, "convert", __file__, tmp_path / "new", "--id2label", __file__)
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    assert "which cannot be loaded" in mistake(
        capsys, "features", tmp_path / "none", "--data", tmp_path, "--output", tmp_path / "new"
    )
    assert not (tmp_path / "new").exists()


def test_every_command_explains_itself(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(command, "--help")
        assert stop.value.code == 0
    assert "Hub" in capsys.readouterr().out
