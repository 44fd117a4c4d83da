"""Files of the original to folders and back: every tensor bit for bit, nothing half-written."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    BitImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from dinov2_hf import DINOv2Backbone, DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.conversion.original.from_original import convert_from_original, load_original
from dinov2_hf.conversion.original.names import chunk_blocks
from dinov2_hf.conversion.original.to_original import convert_to_original
from tests.conversion.original.layouts import (
    assert_holds,
    assert_same,
    backbone_shapes,
    classifier_head,
    depth_head,
    fill,
    prefixed,
    projection_head_shapes,
    segmentation_head,
)


HEADS = {"num_attention_heads": 2}


def save(checkpoint, path):
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def backbone():
    return fill(backbone_shapes(depth=4))


@pytest.fixture(scope="module")
def backbone_folder(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert_from_original(save(backbone, folder / "backbone.pth"), folder / "backbone", **HEADS)
    return folder / "backbone"


@pytest.fixture
def own_folder(backbone_folder, tmp_path):
    """A copy, for tests that replace it."""
    return shutil.copytree(backbone_folder, tmp_path / "backbone")


VARIANTS = {
    "plain": {},
    "registers": {"num_registers": 4},
    "swiglu": {"swiglu_width": 88},
    "registers and swiglu": {"num_registers": 2, "swiglu_width": 88},
    "no qkv bias, 5 channels": {"qkv_bias": False, "num_channels": 5},
}


@pytest.mark.parametrize("block_chunks", [0, 1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_backbones_both_ways(variant, block_chunks, tmp_path):
    plain = fill(backbone_shapes(**VARIANTS[variant]))  # 3 blocks, so 2 chunks do not divide them
    original = chunk_blocks(plain, block_chunks)
    report = convert_from_original(save(original, tmp_path / "original.pth"), tmp_path / "model", **HEADS)
    assert report.kind == "backbone"
    assert report.folders == (tmp_path / "model",)
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert type(model) is DINOv2Model
    assert_holds(model, plain)
    assert report.config.to_json_string() == model.config.to_json_string()
    back = convert_to_original(tmp_path / "model", tmp_path / "back.pth", block_chunks=block_chunks)
    assert back.path == tmp_path / "back.pth"
    assert_same(torch.load(back.path, weights_only=True), original)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "model", "original.pth"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"teacher": prefixed("backbone.", state), "student": {}},
        lambda state: {"model": prefixed("module.", state), "iteration": 3},
        lambda state: {"state_dict": prefixed("module.backbone.", state), "meta": {"time": "now"}},
        lambda state: prefixed("backbone.module.", state),
    ],
)
def test_wrappers_and_prefixes(wrap, tmp_path):
    state = fill(backbone_shapes())
    report = convert_from_original(save(wrap(state), tmp_path / "original.pth"), tmp_path / "model", **HEADS)
    assert report.kind == "backbone"
    assert_holds(DINOv2Model.from_pretrained(tmp_path / "model"), state)


def test_the_same_model_in_memory(tmp_path):
    state = fill(backbone_shapes(num_registers=4))
    path = save(state, tmp_path / "original.pth")
    loaded = load_original(path, **HEADS)
    assert_holds(loaded, state)
    convert_from_original(path, tmp_path / "model", **HEADS)
    model = DINOv2Model.from_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 28, 42)
    assert torch.equal(loaded(images).last_hidden_state, model(images).last_hidden_state)
    assert not loaded.training
    assert [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad] == []


def test_the_format_before_torch_1_6(tmp_path):
    state = fill(backbone_shapes())
    torch.save(state, tmp_path / "original.pth", _use_new_zipfile_serialization=False)
    convert_from_original(tmp_path / "original.pth", tmp_path / "model", **HEADS)
    assert_holds(DINOv2Model.from_pretrained(tmp_path / "model"), state)


def test_a_network_without_layer_scale_computes_the_same_with_ones(tmp_path):
    state = fill(backbone_shapes(layer_scale=False))
    convert_from_original(save(state, tmp_path / "original.pth"), tmp_path / "model", **HEADS)
    convert_to_original(tmp_path / "model", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    gammas = [back.pop(name) for name in list(back) if name.endswith(".gamma")]
    assert len(gammas) == 6
    assert all(torch.equal(gamma, torch.ones(32)) for gamma in gammas)
    assert_same(back, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_number_type_of_the_file_is_kept(dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in fill(backbone_shapes()).items()}
    convert_from_original(save(state, tmp_path / "original.pth"), tmp_path / "model", **HEADS)
    assert_holds(DINOv2Model.from_pretrained(tmp_path / "model"), state)
    convert_to_original(tmp_path / "model", tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True), state)


def test_of_several_number_types_the_one_that_holds_all_values(tmp_path):
    state = fill(backbone_shapes())
    mixed = {name: tensor if "norm" in name else tensor.half() for name, tensor in state.items()}
    convert_from_original(save(mixed, tmp_path / "original.pth"), tmp_path / "model", **HEADS)
    assert_holds(
        DINOv2Model.from_pretrained(tmp_path / "model"), {name: tensor.float() for name, tensor in mixed.items()}
    )


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("separate", [False, True])
def test_teachers_with_heads_both_ways(separate, num_layers, tmp_path):
    plain = fill(backbone_shapes())
    teacher = prefixed("backbone.", chunk_blocks(plain, 2))
    teacher |= prefixed("dino_head.", fill(projection_head_shapes(32, 24, 8, 20, num_layers)))
    if separate:
        teacher |= prefixed("ibot_head.", fill(projection_head_shapes(32, 16, 6, 20, num_layers)))
    path = save({"teacher": teacher}, tmp_path / "teacher_checkpoint.pth")
    report = convert_from_original(path, tmp_path / "model", **HEADS)
    assert report.folders == (tmp_path / "model", tmp_path / "model" / "pretraining_model")
    assert_holds(DINOv2Model.from_pretrained(tmp_path / "model"), plain)
    module = AutoModelForPreTraining.from_pretrained(tmp_path / "model" / "pretraining_model")
    assert_holds(module.teacher.backbone, plain)
    assert_same(module.student.state_dict(), module.teacher.state_dict())
    assert module.config.separate_ibot_head == separate
    assert not module.dino_centering.center.any()
    convert_to_original(tmp_path / "model" / "pretraining_model", tmp_path / "back.pth", block_chunks=2)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == ["teacher"]
    assert_same(back["teacher"], teacher)


@pytest.mark.parametrize(
    ("width", "num_layers", "use_patch_mean"), [(32, 1, False), (64, 1, True), (128, 4, False), (160, 4, True)]
)
def test_classifiers_both_ways(width, num_layers, use_patch_mean, backbone, backbone_folder, tmp_path):
    head = classifier_head(width, 5)
    report = convert_from_original(save(head, tmp_path / "head.pth"), tmp_path / "model", backbone=backbone_folder)
    assert report.kind == "linear classifier"
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert_holds(model.dinov2, backbone)
    assert_same(model.classifier.state_dict(), head)
    assert (model.config.classifier_num_layers, model.config.classifier_use_patch_mean) == (num_layers, use_patch_mean)
    assert model.config.id2label[4] == "LABEL_4"
    assert model(torch.randn(2, 3, 28, 28)).logits.shape == (2, 5)
    convert_to_original(tmp_path / "model", tmp_path / "head_back.pth", part="head")
    assert_same(torch.load(tmp_path / "head_back.pth", weights_only=True), head)
    convert_to_original(tmp_path / "model", tmp_path / "backbone_back.pth")
    assert_same(torch.load(tmp_path / "backbone_back.pth", weights_only=True), backbone)


@pytest.mark.parametrize("num_layers", [1, 4])
def test_segmentation_heads_both_ways(num_layers, backbone, backbone_folder, tmp_path):
    head = segmentation_head(32 * num_layers, 3)
    checkpoint = {"meta": {"CLASSES": ("wall", "sky", "tree")}, "state_dict": head}
    convert_from_original(save(checkpoint, tmp_path / "head.pth"), tmp_path / "model", backbone=backbone_folder)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert_holds(model.dinov2, backbone)
    assert_same(prefixed("decode_head.", model.decode_head.state_dict()), head)
    assert model.config.segmentation_num_layers == num_layers
    assert model.config.id2label == {0: "wall", 1: "sky", 2: "tree"}
    assert model.config.label2id["tree"] == 2
    convert_to_original(tmp_path / "model", tmp_path / "back.pth", part="head")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["meta"] == checkpoint["meta"]
    assert_same(back["state_dict"], head)


@pytest.mark.parametrize(("num_layers", "layers"), [(1, None), (4, [2, 5, 8, 11])])
def test_depth_heads_both_ways(num_layers, layers, tmp_path):
    backbone = fill(backbone_shapes(depth=12))  # for which depth heads with 4 layers are known
    source = save(backbone, tmp_path / "backbone.pth")
    head = depth_head(64 * num_layers)
    path = save({"state_dict": head}, tmp_path / "dinov2_vits14_kitti_linear_head.pth")
    convert_from_original(path, tmp_path / "model", backbone=source, **HEADS)
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path / "model")
    assert_holds(model.dinov2, backbone)
    assert_same(prefixed("decode_head.", model.decode_head.state_dict()), head)
    assert model.config.depth_layers == layers
    assert (model.config.min_depth, model.config.max_depth) == (0.001, 80.0)
    convert_to_original(tmp_path / "model", tmp_path / "back.pth", part="head")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert_same(back["state_dict"], head)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("x_nyu_linear_head.pth", {}, (0.001, 10.0)),
        ("x.pth", {"depth_range": (0.5, 30)}, (0.5, 30)),
        ("x_nyu_linear_head.pth", {"depth_range": (0.5, 30)}, (0.5, 30)),
    ],
)
def test_the_range_of_depths(name, options, expected, backbone_folder, tmp_path):
    path = save({"state_dict": depth_head(64, num_bins=7)}, tmp_path / name)
    config = convert_from_original(path, tmp_path / "model", backbone=backbone_folder, **options).config
    assert (config.min_depth, config.max_depth, config.depth_num_bins) == (*expected, 7)


@pytest.mark.parametrize(
    "checkpoint",
    [
        lambda backbone: prefixed("backbone.", backbone) | prefixed("linear_head.", classifier_head(160, 5)),
        lambda backbone: {"state_dict": prefixed("backbone.", backbone) | segmentation_head(32, 5)},
        lambda backbone: {"state_dict": prefixed("backbone.", backbone) | depth_head(64)},
    ],
)
def test_a_head_and_its_backbone_in_one_file(checkpoint, backbone, tmp_path):
    path = save(checkpoint(backbone), tmp_path / "nyu.pth")
    convert_from_original(path, tmp_path / "model", **HEADS)
    assert_holds(DINOv2Model.from_pretrained(tmp_path / "model"), backbone)


def test_one_classifier_of_the_linear_evaluation(backbone_folder, tmp_path):
    heads = {f"classifier_{n}": classifier_head(width, 5) for n, width in ((1, 64), (4, 160))}
    state = {}
    for name, head in heads.items():
        state |= prefixed(f"classifiers_dict.{name}.linear.", head)
    path = save({"model": state, "optimizer": {"lr": 0.1}, "iteration": 9}, tmp_path / "running_checkpoint.pth")
    with pytest.raises(ValueError, match=r"2 classifiers and none was chosen.* classifier_1, classifier_4\."):
        convert_from_original(path, tmp_path / "model", backbone=backbone_folder)
    convert_from_original(path, tmp_path / "model", backbone=backbone_folder, classifier_name="classifier_4")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert_same(model.classifier.state_dict(), heads["classifier_4"])
    (tmp_path / "one.pth").write_bytes(b"")
    only = save({"model": prefixed("classifiers_dict.a.linear.", heads["classifier_1"])}, tmp_path / "one.pth")
    convert_from_original(only, tmp_path / "model", backbone=backbone_folder, overwrite=True)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert_same(model.classifier.state_dict(), heads["classifier_1"])


def test_the_backbone_may_be_a_file_of_the_original(backbone, tmp_path):
    source = save({"teacher": prefixed("backbone.", chunk_blocks(backbone, 3))}, tmp_path / "backbone.pth")
    head = save(classifier_head(64, 5), tmp_path / "head.pth")
    convert_from_original(head, tmp_path / "model", backbone=source, **HEADS)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert_holds(model.dinov2, backbone)


def test_the_backbone_may_be_a_folder_of_transformers(tmp_path):
    stock = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
        )
    )
    stock.save_pretrained(tmp_path / "stock")
    head = save(classifier_head(64, 5), tmp_path / "head.pth")
    convert_from_original(head, tmp_path / "model", backbone=tmp_path / "stock")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert_same(model.dinov2.state_dict(), DINOv2Model.from_pretrained(tmp_path / "stock").state_dict())
    assert model.config.interpolate_antialias
    back = torch.load(convert_to_original(tmp_path / "stock", tmp_path / "back.pth").path, weights_only=True)
    assert_holds(model.dinov2, back)


def test_a_classifier_of_transformers_to_the_original(tmp_path):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, num_labels=3)
    stock = Dinov2ForImageClassification(config)
    stock.save_pretrained(tmp_path / "stock")
    head = convert_to_original(tmp_path / "stock", tmp_path / "head.pth", part="head")
    assert_same(torch.load(head.path, weights_only=True), stock.classifier.state_dict())


def test_labels_are_not_those_of_the_head_that_the_backbone_had(backbone_folder, tmp_path):
    head = save(classifier_head(64, 2), tmp_path / "head.pth")
    convert_from_original(head, tmp_path / "pets", backbone=backbone_folder, id2label=["cat", "dog"])
    assert json.loads((tmp_path / "pets" / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}
    config = convert_from_original(head, tmp_path / "model", backbone=tmp_path / "pets").config
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    config = convert_from_original(
        head, tmp_path / "model", backbone=tmp_path / "pets", id2label={"1": "b", "0": "a"}, overwrite=True
    ).config
    assert config.id2label == {0: "a", 1: "b"}


def test_a_backbone_class_gives_the_same_file(backbone, backbone_folder, tmp_path):
    DINOv2Backbone.from_pretrained(backbone_folder).save_pretrained(tmp_path / "maps")
    back = convert_to_original(tmp_path / "maps", tmp_path / "back.pth")
    assert_same(torch.load(back.path, weights_only=True), backbone)


def test_folders_come_with_image_processor_and_card(backbone_folder):
    processor = AutoImageProcessor.from_pretrained(backbone_folder)
    assert type(processor) is DINOv2ImageProcessor
    reference = BitImageProcessor(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8)
    found, expected = (one(image, return_tensors="pt")["pixel_values"] for one in (processor, reference))
    torch.testing.assert_close(found, expected)
    card = (backbone_folder / "README.md").read_text()
    assert 'pipeline("image-feature-extraction", model=".")' in card
    assert "`backbone.pth`" in card
    assert "32 wide, with 4 blocks" in card


def test_dense_heads_see_the_whole_image_in_whole_patches(backbone_folder, tmp_path):
    image = torch.randint(0, 256, (3, 101, 143), dtype=torch.uint8)
    convert_from_original(save(depth_head(64), tmp_path / "nyu.pth"), tmp_path / "depth", backbone=backbone_folder)
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "depth")(image, return_tensors="pt")["pixel_values"]
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    # 11 rows and 11 columns more, the smaller part before.
    expected = torch.nn.functional.pad((image / 255 - mean) / deviation, (5, 6, 5, 6))
    torch.testing.assert_close(pixels[0], expected)
    head = save(segmentation_head(32, 4), tmp_path / "head.pth")
    convert_from_original(head, tmp_path / "segmentation", backbone=backbone_folder)
    pixels = AutoImageProcessor.from_pretrained(tmp_path / "segmentation")(image, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 364, 518)


def test_no_image_processor_for_images_that_are_not_rgb(tmp_path):
    state = fill(backbone_shapes(num_channels=5))
    convert_from_original(save(state, tmp_path / "original.pth"), tmp_path / "model", **HEADS)
    assert not (tmp_path / "model" / "preprocessor_config.json").exists()


def test_replacing_what_is_there(backbone, own_folder, tmp_path):
    other = {name: tensor + 1 for name, tensor in backbone.items()}
    path = save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="backbone exists already; .* --overwrite"):
        convert_from_original(path, own_folder, **HEADS)
    assert_holds(DINOv2Model.from_pretrained(own_folder), backbone)
    convert_from_original(path, own_folder, overwrite=True, **HEADS)
    assert_holds(DINOv2Model.from_pretrained(own_folder), other)
    with pytest.raises(ValueError, match=r"other\.pth exists already"):
        convert_to_original(own_folder, path)
    assert convert_to_original(own_folder, path, overwrite=True).path == path
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("not a model")
    with pytest.raises(ValueError, match=r"was not written by dinov2_hf"):
        convert_from_original(path, tmp_path / "mine", overwrite=True, **HEADS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "not a model"


def test_a_failure_while_writing_leaves_what_was_there(backbone, own_folder, tmp_path, monkeypatch):
    path = save({name: tensor + 1 for name, tensor in backbone.items()}, tmp_path / "other.pth")
    before = sorted(tmp_path.iterdir())

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DINOv2ImageProcessor, "save_pretrained", full_disk)
    with pytest.raises(ValueError, match="as the disk is full"):
        convert_from_original(path, own_folder, overwrite=True, **HEADS)
    with pytest.raises(ValueError, match="as the disk is full"):
        convert_from_original(path, tmp_path / "new", **HEADS)
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ValueError, match="as the disk is full"):
        convert_to_original(own_folder, tmp_path / "new.pth")
    assert sorted(tmp_path.iterdir()) == before
    assert_holds(DINOv2Model.from_pretrained(own_folder), backbone)
