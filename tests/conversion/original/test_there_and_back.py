"""A model that goes to the original's layout and back is what it was; what no tensor tells is not guessed silently."""

import logging

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, DPTImageProcessor

from dinov2_hf import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForPreTraining,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.cli import main
from dinov2_hf.conversion.original.checkpoint import RECORD, read_original_checkpoint
from dinov2_hf.conversion.original.from_original import convert_from_original, load_original
from dinov2_hf.conversion.original.to_original import convert_to_original
from dinov2_hf.runs.initial_weights import load_initial_model
from tests.conversion.original.layouts import backbone_shapes, fill, prefixed, segmentation_head


UNUSUAL = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28, "drop_path_rate": 0.1,
    "layerscale_value": 1e-5, "interpolate_offset": 0.0, "interpolate_antialias": True,
}  # fmt: skip
FLAGS = "--num_attention_heads 4 --interpolate_offset 0.0 --interpolate_antialias"


@pytest.fixture
def folder(tmp_path, spread):
    """A model that no rule would guess, and an image processor of its own."""
    spread(DINOv2Model(DINOv2Config(**UNUSUAL))).save_pretrained(tmp_path / "model")
    DINOv2ImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 14, "width": 14}, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def features(folder, image):
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    model = DINOv2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(pixels).last_hidden_state, model(torch.nn.functional.interpolate(pixels, (42, 56))).pooler_output


def test_features_and_configuration_stay(tmp_path, folder, capsys):
    main(["convert", str(folder), str(tmp_path / "x.pth")])
    assert FLAGS in capsys.readouterr().out
    main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "again")])
    said = capsys.readouterr().out
    for line in (
        "num_attention_heads: 4 (as the file records it)",
        "interpolate_offset: 0.0 (as the file records it)",
        "interpolate_antialias: True (as the file records it)",
        "image processor: short side 16, crop 14 x 14, pixels (as the file records it)",
    ):
        assert f"\n  {line}\n" in said
    image = Image.effect_noise((40, 50), 90).convert("RGB")
    for one, other in zip(features(folder, image), features(tmp_path / "again", image), strict=True):
        assert torch.equal(one, other)
    assert DINOv2Config.from_pretrained(folder).to_json_string() == (
        DINOv2Config.from_pretrained(tmp_path / "again").to_json_string()
    )
    card = (tmp_path / "again" / "README.md").read_text()
    assert "| num_attention_heads | 4 | as the file records it |" in card


def test_a_lost_record_is_said_and_the_flags_replace_it(tmp_path, folder, capsys):
    convert_to_original(folder, tmp_path / "x.pth")
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    torch.save(dict(state), tmp_path / "bare.pth")
    main(["convert", str(tmp_path / "bare.pth"), str(tmp_path / "guessed")])
    said = capsys.readouterr().out
    assert "num_attention_heads: 2 (one for every 64 channels, as in all released networks)" in said
    assert "interpolate_offset: 0.1 (as in the released networks without registers)" in said
    assert "interpolate_antialias: False (as in the released networks without registers)" in said
    assert "image processor: short side 256, crop 224 x 224, pixels (that of the original's evaluation)" in said
    assert "one for every 64 channels" in (tmp_path / "guessed" / "README.md").read_text()
    main(["convert", str(tmp_path / "bare.pth"), str(tmp_path / "given"), *FLAGS.split()])
    assert "num_attention_heads: 4 (as given)" in capsys.readouterr().out
    given, original = (DINOv2Model.from_pretrained(path).eval() for path in (tmp_path / "given", folder))
    pixels = torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        assert torch.equal(given(pixels).pooler_output, original(pixels).pooler_output)


@pytest.mark.parametrize("load", [load_original, load_initial_model])
def test_callers_without_a_report_log_what_a_rule_chose(tmp_path, folder, caplog, load, monkeypatch):
    convert_to_original(folder, tmp_path / "x.pth")
    torch.save(dict(torch.load(tmp_path / "x.pth", weights_only=True)), tmp_path / "bare.pth")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logger = logging.getLogger("dinov2_hf.conversion.original.from_original")
    assert load(str(tmp_path / "x.pth")).config.num_attention_heads == 4
    assert not caplog.records
    with caplog.at_level("WARNING", logger=logger.name):
        assert load(str(tmp_path / "bare.pth")).config.num_attention_heads == 2
    assert "num_attention_heads: 2 (one for every 64 channels" in caplog.text


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.ls1, self.ls2 = Attention(width), Scale(width), Scale(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class ModulesOfTheOriginal(nn.Module):
    """Modules and parameters with the names of the original's vision transformer."""

    def __init__(self, width, depth, num_positions):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 14, 14)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)


def test_a_strict_load_passes_over_the_record(tmp_path, folder):
    """As `torch.hub` of the original loads its files: torch.load, then load_state_dict, which is strict."""
    convert_to_original(folder, tmp_path / "x.pth")
    state = torch.load(tmp_path / "x.pth", map_location="cpu")
    assert RECORD in state._metadata
    network = ModulesOfTheOriginal(128, 2, 5)
    network.load_state_dict(state, strict=True)
    assert torch.equal(network.norm.weight, DINOv2Model.from_pretrained(folder).layernorm.weight)
    torch.save(state, tmp_path / "saved_again.pth")
    assert read_original_checkpoint(tmp_path / "saved_again.pth").record["config"]["num_attention_heads"] == 4


def test_a_teacher_keeps_its_losses(tmp_path):
    config = DINOv2PreTrainingConfig(
        backbone_config=DINOv2Config(**UNUSUAL), num_prototypes=8, head_hidden_size=8, bottleneck_size=4,
        centering="sinkhorn_knopp", koleo_loss_weight=0.3, student_temperature=0.2,
    )  # fmt: skip
    DINOv2ForPreTraining(config).save_pretrained(tmp_path / "model")
    convert_to_original(tmp_path / "model", tmp_path / "x.pth")
    report = convert_from_original(tmp_path / "x.pth", tmp_path / "again")
    assert "losses and centering: sinkhorn_knopp (as the file records it)" in map(str, report.choices)
    again = DINOv2PreTrainingConfig.from_pretrained(tmp_path / "again" / "pretraining_model")
    assert (again.centering, again.koleo_loss_weight, again.student_temperature) == ("sinkhorn_knopp", 0.3, 0.2)
    for name in UNUSUAL:
        assert getattr(again.backbone_config, name) == getattr(config.backbone_config, name)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DINOv2ForImageClassification, {"id2label": {0: "cat", 1: "dog"}}),
        (DINOv2ForSemanticSegmentation, {"id2label": {0: "sky", 1: "sea"}, "semantic_loss_ignore_index": 0}),
        (DINOv2ForDepthEstimation, {"min_depth": 0.5, "max_depth": 42.0}),
    ],
)
def test_heads_keep_their_range_and_names(tmp_path, folder, spread, kind, fields):
    spread(kind(DINOv2Config(**UNUSUAL, **fields))).save_pretrained(tmp_path / "head")
    DPTImageProcessor(size={"height": 42, "width": 42}).save_pretrained(tmp_path / "head")
    written = convert_to_original(tmp_path / "head", tmp_path / "head.pth", part="head")
    assert "--backbone FOLDER" in str(written)
    convert_to_original(folder, tmp_path / "backbone.pth")
    convert_from_original(tmp_path / "head.pth", tmp_path / "again", backbone=tmp_path / "backbone.pth")
    again = DINOv2Config.from_pretrained(tmp_path / "again")
    assert all(getattr(again, name) == value for name, value in fields.items())
    assert again.num_attention_heads == 4
    assert AutoImageProcessor.from_pretrained(tmp_path / "again").size["height"] == 42


def test_files_of_others_say_whose_values_these_are(tmp_path, folder):
    torch.save(segmentation_head(128, 2), tmp_path / "head.pth")
    report = convert_from_original(tmp_path / "head.pth", tmp_path / "segmentation", backbone=folder)
    assert "names of the classes: LABEL_0, ... (the file names none)" in map(str, report.choices)
    torch.save({"teacher": prefixed("backbone.", fill(backbone_shapes(128)))}, tmp_path / "teacher.pth")
    report = convert_from_original(tmp_path / "teacher.pth", tmp_path / "teacher")
    assert [choice.name for choice in report.choices if not choice.is_known] == [
        "num_attention_heads", "interpolate_offset", "interpolate_antialias", "image processor"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"config": {"num_attention_heads": 5}}, r"x\.pth .*`hidden_size` is 128, which is not divisible"),
        ({"config": {"interpolate_offset": "far"}}, r"x\.pth .*interpolate_offset"),
        (
            {"image_processor": {"image_processor_type": "EvilProcessor"}},
            r"x\.pth: its record holds an image processor",
        ),
    ],
)
def test_records_that_are_none_are_refused(tmp_path, record, message):
    state = fill(backbone_shapes(128))
    with_record = type(nn.Module().state_dict())(state)
    with_record._metadata = {RECORD: record}
    torch.save(with_record, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message) as raised:
        convert_from_original(tmp_path / "x.pth", tmp_path / "model")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("record", ["text", {"config": 3}, {"other": {}}, 7])
def test_what_is_no_record_is_none(tmp_path, record):
    with_record = type(nn.Module().state_dict())(fill(backbone_shapes(128)))
    with_record._metadata = {RECORD: record}
    torch.save(with_record, tmp_path / "x.pth")
    report = convert_from_original(tmp_path / "x.pth", tmp_path / "model")
    assert not any(choice.is_known for choice in report.choices)
