"""Files and options that are none: one sentence that says what was found, no code executed, nothing written."""

import argparse
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ForDepthEstimation, DINOv2ForImageClassification, DINOv2Model
from dinov2_hf.conversion.original.checkpoint import read_original_checkpoint
from dinov2_hf.conversion.original.from_original import convert_from_original
from dinov2_hf.conversion.original.to_original import convert_to_original
from tests.conversion.original.layouts import (
    backbone_shapes,
    classifier_head,
    depth_head,
    fill,
    prefixed,
    projection_head_shapes,
    segmentation_head,
)


def save(checkpoint, path):
    torch.save(checkpoint, path)
    return path


def refuse(tmp_path, checkpoint, message, name="x.pth", **options):
    """Converting says one sentence with the file's name and leaves nothing."""
    path = tmp_path / name
    if isinstance(checkpoint, bytes):
        path.write_bytes(checkpoint)
    else:
        save(checkpoint, path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        convert_from_original(path, tmp_path / "model", **options)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_code_in_a_pickle_is_not_executed(form, tmp_path):
    path, target = tmp_path / "x.pth", tmp_path / "executed"
    checkpoint = fill(backbone_shapes()) | {"extra": Malicious(target)}
    if form == "plain pickle":
        path.write_bytes(pickle.dumps({"extra": Malicious(target)}, protocol=2))
    else:
        torch.save(checkpoint, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"x\.pth was not loaded, because only tensors, numbers and texts are"):
        convert_from_original(path, tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_test_of_malicious_pickles_can_fail(tmp_path):
    save({"extra": Malicious(tmp_path / "executed")}, tmp_path / "x.pth")
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert (tmp_path / "executed").is_dir()


def test_what_a_pickle_asks_for_is_named(tmp_path):
    refuse(tmp_path, {"teacher": {}, "args": argparse.Namespace(arch="vit_small")}, r"asks for `argparse\.Namespace`")


def test_numbers_of_numpy_in_a_description_are_read(tmp_path):
    state = fill(backbone_shapes())
    meta = {"best_score": np.float64(0.44), "iter": np.int64(7), "lr": np.float32(0.1)}
    read = read_original_checkpoint(save({"state_dict": state, "meta": meta}, tmp_path / "x.pth"))
    assert read.backbone.keys() == state.keys()


@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_are_cut_off(kept, zipped, tmp_path):
    torch.save(fill(backbone_shapes()), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pth").read_bytes()
    cut_off = whole[: int(kept * len(whole)) if kept < 1 else kept]
    refuse(tmp_path, cut_off, "cannot be read|was not loaded")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (b"<html>404: not found</html>", "was not loaded|cannot be read"),
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({1: torch.zeros(1)}, "holds a dict, not a state dict"),
        ({}, "no state dict of tensors .it is empty"),
        ({"teacher": {}}, "no state dict of tensors .it is empty"),
        ({"cls_token": torch.zeros(1), "epoch": 3}, "no state dict of tensors .`epoch` is a int"),
        (
            {"a": torch.zeros(1), "b": torch.zeros(1)},
            "of no known kind, with `a`, `b`; expected is a backbone",
        ),
        ({"layer1.0.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, "looks like a ResNet;"),
        ({"embeddings.cls_token": torch.zeros(1)}, "looks like a model in the layout of the Hub"),
        ({"dinov2.embeddings.cls_token": torch.zeros(1)}, "looks like a model in the layout of the Hub"),
        ({"_fsdp_wrapped_module._flat_param": torch.zeros(1)}, "one process's shard of a training state"),
        ({"model": {"student.backbone.cls_token": torch.zeros(1)}}, "student and teacher of a training state"),
        (
            {name: torch.zeros(1) for name in ("cls_token", "storage_tokens", "mask_token", "rope_embed.periods")},
            "looks like a DINOv3 backbone, which is another architecture",
        ),
        (
            {name: torch.zeros(1) for name in backbone_shapes(layer_scale=False) if name != "mask_token"},
            "looks like a vision transformer of another family .DINO, iBOT, timm.",
        ),
        (
            {"state_dict": {"decode_head.reassemble_blocks.projects.0.conv.weight": torch.zeros(1)}},
            "decode head with `reassemble_blocks.* only linear ones are known",
        ),
        (
            prefixed("linear_head.", classifier_head(64, 5)) | segmentation_head(32, 5),
            "holds `decode_head`, `linear_head`, but the heads of one model are expected",
        ),
        (
            {"backbone.cls_token": torch.zeros(1), "module.cls_token": torch.zeros(1)},
            "holds `cls_token` .* twice",
        ),
    ],
)
def test_other_kinds_of_files(checkpoint, message, tmp_path):
    refuse(tmp_path, checkpoint, message)


def test_a_shard_of_a_training_state_is_told_by_its_name(tmp_path):
    refuse(tmp_path, {}, "one process's shard.*give the `teacher_checkpoint.pth`", name="model_0001249.rank_0.pth")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.pth is not a file"):
        convert_from_original(tmp_path / "nothing.pth", tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.proj.bias": None}, r"not hold a whole DINOv2 backbone: of 49 tensors .*proj\.bias` missing"),
        ({"head.weight": (3, 64)}, r"`head\.weight` unexpected"),
        ({"norm.weight": (63,)}, r"`norm\.weight` has shape \(63,\), but \(64,\) is expected"),
        ({"blocks.0.attn.qkv.weight": (190, 64)}, r"has shape \(190, 64\), but \(192, 64\) is expected"),
    ],
)
def test_backbones_that_are_not_whole(change, message, tmp_path):
    shapes = backbone_shapes(hidden_size=64) | change
    refuse(tmp_path, fill({name: shape for name, shape in shapes.items() if shape is not None}), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`cls_token` has 32 channels, .* --num_attention_heads"),
        ({"num_attention_heads": 5}, "`hidden_size` is 32, which is not divisible by `num_attention_heads` .5."),
        ({"num_attention_heads": 2, "depth_range": (1, 2)}, "holds a backbone; leave --depth_range out"),
        ({"num_attention_heads": 2, "id2label": ["a"]}, "holds a backbone; leave --id2label out"),
        ({"num_attention_heads": 2, "classifier_name": "a"}, '--classifier_name is "a", but it does not hold several'),
        ({"num_attention_heads": 2, "backbone": "b"}, "holds a backbone of its own; leave --backbone out"),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path):
    refuse(tmp_path, fill(backbone_shapes()), message, **options)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    path = save(fill(backbone_shapes(depth=3)), folder / "backbone.pth")
    convert_from_original(path, folder / "backbone", num_attention_heads=2)
    return folder / "backbone"


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (classifier_head(96, 5), {}, "reads 96 features, .* 32 wide a classifier reads one of 32, 64, 128, 160;"),
        (classifier_head(160, 5), {}, "the head reads 4 blocks, but the backbone has 3"),
        (classifier_head(64, 5), {"id2label": ["a"]}, "--id2label names 1 labels, but the head has 5"),
        (classifier_head(64, 5) | {"bias": torch.zeros(4)}, {}, r"`bias` has shape \(4,\), but \(5,\) is expected"),
        (prefixed("linear_head.", {"bias": torch.zeros(4)}), {}, "`weight` is missing"),
        (segmentation_head(33, 5), {}, "reads 33 channels, but a multiple of 32"),
        (segmentation_head(128, 5), {}, "the head reads 4 blocks, but the backbone has 3"),
        (depth_head(64), {}, "range of depths is neither in the file nor in its name; give it with --depth_range"),
        (depth_head(64), {"depth_range": (3, 1)}, "`min_depth` is 3 and `max_depth` is 1"),
        (depth_head(96), {"depth_range": (1, 3)}, r"reads 96 channels, but 64 .1 layer. or 256 .4. are expected"),
        (depth_head(256), {"depth_range": (1, 3)}, "4 layers, .* 12, 24 and 40 blocks only, and this one has 3"),
        (depth_head(64, num_bins=1), {"depth_range": (1, 3)}, "has 1 output, a regression"),
        (
            classifier_head(64, 5),
            {"interpolate_offset": 0.0},
            "of its own; leave --interpolate_offset out",
        ),
    ],
)
def test_heads_that_do_not_fit(head, options, message, backbone, tmp_path):
    path = save(head, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=message):
        convert_from_original(path, tmp_path / "model", backbone=backbone, **options)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_head_needs_a_backbone(tmp_path):
    refuse(
        tmp_path,
        classifier_head(64, 5),
        "linear classifier without its backbone; give .* with --backbone",
    )
    head = save(classifier_head(64, 5), tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"--backbone is .*head\.pth, which holds a linear classifier and no"):
        convert_from_original(head, tmp_path / "model", backbone=head)
    with pytest.raises(ValueError, match="No DINOv2Model can be read from nobody/nothing"):
        convert_from_original(head, tmp_path / "model", backbone="nobody/nothing")


def test_teacher_heads_that_are_not_whole(tmp_path):
    teacher = prefixed("backbone.", fill(backbone_shapes()))
    head = fill(projection_head_shapes(32, 24, 8, 20, 3))
    del head["mlp.2.bias"]
    checkpoint = {"teacher": teacher | prefixed("dino_head.", head)}
    refuse(tmp_path, checkpoint, r"in `dino_head`, .*`mlp\.2\.bias` missing", num_attention_heads=2)


CONFIG = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (DINOv2Model(DINOv2Config(**CONFIG)), {"part": "heads"}, '--part is "heads"; it must be "backbone" or "head"'),
        (DINOv2Model(DINOv2Config(**CONFIG)), {"part": "head"}, "a DINOv2Model has no linear head"),
        (DINOv2Model(DINOv2Config(**CONFIG)), {"block_chunks": 5}, "--block_chunks is 5; it must be from 0"),
        (
            DINOv2Model(DINOv2Config(**CONFIG, hidden_act="relu")),
            {},
            "is relu, but the original has gelu",
        ),
        (
            DINOv2ForImageClassification(DINOv2Config(**CONFIG, classifier_num_layers=2)),
            {"part": "head"},
            "`classifier_num_layers` is 2, but the original's classifiers read 1 or 4",
        ),
        (
            DINOv2ForImageClassification(DINOv2Config(**CONFIG, num_labels=0)),
            {"part": "head"},
            "`num_labels` is 0, so the model has no classifier",
        ),
        (
            DINOv2ForDepthEstimation(DINOv2Config(**CONFIG, depth_layers=[0, 3])),
            {"part": "head"},
            r"`depth_layers` is \[0, 3\], but the original's depth heads read the blocks \[3\] of a backbone of 4",
        ),
    ],
)
def test_models_that_the_original_cannot_hold(model, options, message, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        convert_to_original(tmp_path / "model", tmp_path / "x.pth", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folders_that_are_not_whole(backbone, tmp_path):
    backbone = shutil.copytree(backbone, tmp_path / "backbone")
    weights = backbone / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read"):
        convert_to_original(backbone, tmp_path / "x.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        convert_to_original(tmp_path / "empty", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="is a folder, but the name of a file is needed"):
        convert_to_original(backbone, tmp_path / "empty", overwrite=True)
    assert not (tmp_path / "x.pth").exists()
