"""What pretraining starts from: every kind of source, held against its own tensors."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from dinov2_hf import DINOv2Config, DINOv2ForImageClassification, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.models import DINOv2Model, adapt_num_channels
from dinov2_hf.runs.initial_weights import (
    initialise,
    load_initial_model,
    recipe_of,
    refuse_other_architecture,
)
from tests.conversion.model_folders import write_model
from tests.conversion.original.layouts import assert_holds, backbone_shapes, fill, prefixed, projection_head_shapes


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
HEADS = {"num_prototypes": 16, "head_hidden_size": 24, "bottleneck_size": 8}


def pretraining_model(spread=None, **values) -> DINOv2ForPreTraining:
    """With `spread`, student and teacher are two different networks, and the centres have moved."""
    objective = {name: values.pop(name) for name in list(values) if name in DINOv2PreTrainingConfig.__annotations__}
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**SIZES | values), **HEADS | objective)
    model = DINOv2ForPreTraining(config)
    if spread is not None:
        spread(model)
        for name, buffer in model.named_buffers():
            assert name.endswith("centering.center")
            buffer.normal_()
    return model


def assert_starts_as(model: DINOv2ForPreTraining, backbone: dict[str, torch.Tensor]) -> None:
    for network in (model.student, model.teacher):
        state = network.backbone.state_dict()
        assert state.keys() == backbone.keys()
        for name, value in backbone.items():
            assert state[name].dtype == torch.float32
            assert torch.equal(state[name], value.float()), name


def stock(folder, kind, config) -> None:
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)


SOURCES = {
    "our folder": lambda folder: write_model(DINOv2Model, folder),
    "ours with a head": lambda folder: write_model(DINOv2ForImageClassification, folder),
    "ours in bfloat16": lambda folder: write_model(DINOv2Model, folder).bfloat16().save_pretrained(folder),
    "stock": lambda folder: stock(folder, Dinov2Model, Dinov2Config(**SIZES)),
    "stock with registers": lambda folder: stock(
        folder, Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
    ),
}


@pytest.mark.parametrize("write", SOURCES.values(), ids=SOURCES)
def test_a_backbone_becomes_student_and_teacher_and_the_heads_stay(write, tmp_path):
    write(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    source = {name.removeprefix("dinov2."): saved[name] for name in saved if not name.startswith("classifier.")}
    initial = load_initial_model(str(tmp_path))
    recipe = recipe_of(initial)
    assert "num_prototypes" not in recipe
    model = pretraining_model(**recipe)
    heads = {name: value.clone() for name, value in model.state_dict().items() if ".backbone." not in name}
    initialise(model, initial)
    assert_starts_as(model, source)
    for name, value in heads.items():
        assert torch.equal(model.state_dict()[name], value)


def test_a_checkpoint_of_the_original(tmp_path):
    state = fill(backbone_shapes(64))
    torch.save(state, tmp_path / "vit.pth")
    initial = load_initial_model(str(tmp_path / "vit.pth"))
    model = pretraining_model(**recipe_of(initial))
    initialise(model, initial)
    for network in (model.student, model.teacher):
        assert_holds(network.backbone, state)


def test_a_teacher_of_the_original_brings_its_heads(tmp_path):
    head = fill(projection_head_shapes(64, 16, 8, 24, 3))
    state = prefixed("backbone.", fill(backbone_shapes(64))) | prefixed("dino_head.", head)
    torch.save({"teacher": state}, tmp_path / "teacher_checkpoint.pth")
    initial = load_initial_model(str(tmp_path / "teacher_checkpoint.pth"))
    recipe = recipe_of(initial)
    assert (recipe["num_prototypes"], recipe["head_hidden_size"], recipe["bottleneck_size"]) == (16, 24, 8)
    model = pretraining_model(**recipe)
    initialise(model, initial)
    for network in (model.student, model.teacher):
        assert torch.equal(network.dino_head.last_layer.weight_v, head["last_layer.weight_v"])


@pytest.mark.parametrize("inside", ["", "pretraining_model"])
@pytest.mark.parametrize("separate", [False, True])
def test_an_earlier_run_is_kept_whole(spread, tmp_path, inside, separate):
    earlier = pretraining_model(spread, separate_ibot_head=separate)
    earlier.save_pretrained(tmp_path / inside)
    initial = load_initial_model(str(tmp_path))
    model = pretraining_model(**recipe_of(initial))
    initialise(model, initial)
    assert not torch.equal(model.student.dino_head.last_layer.weight_v, model.teacher.dino_head.last_layer.weight_v)
    state = model.state_dict()
    assert state.keys() == earlier.state_dict().keys()
    for name, value in earlier.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("to", ["softmax", "sinkhorn_knopp"])
def test_the_centering_may_change(spread, to):
    earlier = pretraining_model(spread, centering={"softmax": "sinkhorn_knopp", "sinkhorn_knopp": "softmax"}[to])
    model = pretraining_model(centering=to)
    initialise(model, earlier)
    assert torch.equal(model.teacher.dino_head.last_layer.weight_v, earlier.teacher.dino_head.last_layer.weight_v)
    assert all(torch.equal(center, torch.zeros(16)) for center in model.buffers())


@pytest.mark.parametrize("whole", [False, True])
def test_another_resolution_keeps_the_features_of_that_resolution(spread, whole):
    """At 56 pixels the weights for 28 give the same features, resized for good or for one image."""
    earlier = pretraining_model(spread)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = earlier.teacher.backbone(pixels).last_hidden_state
        model = pretraining_model(image_size=56)
        initialise(model, earlier if whole else earlier.teacher.backbone)
        assert model.teacher.backbone.embeddings.position_embeddings.shape == (1, 17, 32)
        assert torch.equal(model.eval().teacher.backbone(pixels).last_hidden_state, expected)


def test_other_channels(spread):
    earlier = pretraining_model(spread)
    model = pretraining_model(num_channels=5)
    weight = earlier.teacher.backbone.embeddings.patch_embeddings.projection.weight.detach().clone()
    initialise(model, earlier)
    found = model.teacher.backbone.embeddings.patch_embeddings.projection.weight
    assert torch.equal(found, weight[:, [0, 1, 2, 0, 1]] * (3 / 5))
    assert adapt_num_channels(earlier, 5).config.backbone_config.num_channels == 5


CONTRADICTIONS = {
    "width": ({"hidden_size": 64}, "`hidden_size` is 64, but the weights of here have 32; leave it out of the recipe"),
    "patch": ({"patch_size": 7}, "`patch_size` is 7, but the weights of here have 14"),
    "registers": ({"num_register_tokens": 4}, "`num_register_tokens` is 4, but the weights of here have 0"),
    "prototypes": ({"num_prototypes": 99}, "`num_prototypes` is 99, .* have 16; .* with fresh heads"),
    "heads": ({"separate_ibot_head": True}, "`separate_ibot_head` is True, but the weights of here have False"),
}


@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_another_architecture_is_refused(values, message):
    earlier = pretraining_model()
    recipe = recipe_of(earlier)
    refuse_other_architecture(earlier, recipe | {"drop_path_rate": 0.3, "image_size": 56, "centering": "x"}, "here")
    with pytest.raises(ValueError, match=message):
        refuse_other_architecture(earlier, recipe | values, "here")
    with pytest.raises(ValueError, match="the weights of the DINOv2ForPreTraining have"):
        initialise(pretraining_model(**values), earlier)


def test_fresh_heads_may_have_any_size():
    backbone = pretraining_model().teacher.backbone
    refuse_other_architecture(backbone, recipe_of(backbone) | {"num_prototypes": 99}, "here")
    initialise(pretraining_model(num_prototypes=99), backbone)


def test_what_is_no_source(tmp_path):
    with pytest.raises(ValueError, match="has no config.json, so it is not a model folder; name"):
        load_initial_model(str(tmp_path))
    with pytest.raises(ValueError, match="No DINOv2Model can be read from nobody/nothing .it is not a folder on this"):
        load_initial_model("nobody/nothing")
    with pytest.raises(ValueError, match="No DINOv2ForPreTraining can be read from nobody/nothing"):
        load_initial_model("nobody/nothing/pretraining_model")
