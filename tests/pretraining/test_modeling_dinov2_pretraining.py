"""Student and teacher in one module: what moves, what does not, and the loss put together by hand."""

import inspect

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForPreTraining

from dinov2_hf import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.pretraining.losses import dino_loss, koleo_loss

from .test_losses import whole


@pytest.fixture
def batch():
    mask = torch.zeros(6, 16, dtype=torch.bool)
    mask[0, [1, 2, 3]] = True
    mask[4, [0, 5]] = True
    return {
        "global_crops": torch.randn(2, 3, 3, 32, 32),
        "local_crops": torch.randn(4, 3, 3, 16, 16),
        "bool_masked_pos": mask,
        "masked_indices": mask.flatten().nonzero().flatten(),
        "masked_weights": torch.tensor([1 / 3] * 3 + [1 / 2] * 2),
    }


@pytest.fixture
def config(tiny_config):
    tiny_config.drop_path_rate = 0.4
    return DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=24, head_hidden_size=20, bottleneck_size=12
    )


def test_teacher_starts_as_the_student_and_stays_in_evaluation_mode(config):
    model = DINOv2ForPreTraining(config).train()
    for one, other in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad
        assert not other.requires_grad
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())
    assert model.teacher.backbone.config.drop_path_rate == 0
    assert model.student.backbone.config.drop_path_rate == 0.4


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp", "none"])
def test_loss_is_put_together_from_its_parts(config, batch, separate, centering):
    config.separate_ibot_head, config.centering = separate, centering
    config.dino_loss_weight, config.ibot_loss_weight, config.koleo_loss_weight = 0.7, 1.3, 0.2
    model = DINOv2ForPreTraining(config).eval()
    output = model(**batch, teacher_temperature=0.06)
    teacher, student = model.teacher, model.student
    global_crops = batch["global_crops"].flatten(0, 1)
    tokens = teacher.backbone(global_crops).last_hidden_state
    patches = tokens[:, 1:].flatten(0, 1)[batch["masked_indices"]]
    patch_head = (teacher.ibot_head, student.ibot_head) if separate else (teacher.dino_head, student.dino_head)
    targets = model.dino_centering(whole(teacher.dino_head(tokens[:, 0])), 0.06)(slice(None)).view(2, 3, -1)
    patch_targets = model.ibot_centering(whole(patch_head[0](patches)), 0.06)(slice(None))
    tokens = student.backbone(global_crops, bool_masked_pos=batch["bool_masked_pos"]).last_hidden_state
    local_cls = student.backbone(batch["local_crops"].flatten(0, 1)).pooler_output
    local = dino_loss(whole(student.dino_head(local_cls)), targets, 0.1) / 10
    global_ = dino_loss(whole(student.dino_head(tokens[:, 0])), targets, 0.1, same_crops=True) / 10
    patches = patch_head[1](tokens[:, 1:].flatten(0, 1)[batch["masked_indices"]])
    costs = -(patch_targets * torch.log_softmax(patches / 0.1, dim=-1)).sum(dim=-1)
    ibot = (costs * batch["masked_weights"]).sum() / 6
    koleo = koleo_loss(tokens[:3, 0]) + koleo_loss(tokens[3:, 0])
    for ours, expected in [
        (output.dino_local_loss, local), (output.dino_global_loss, global_), (output.ibot_loss, ibot),
        (output.koleo_loss, koleo), (output.loss, 0.7 * (local + global_) + 1.3 * ibot + 0.2 * koleo),
    ]:  # fmt: skip
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    entropy = -(targets * targets.clamp_min(1e-30).log()).sum(-1).mean()
    torch.testing.assert_close(output.target_entropy, entropy, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_every_weight_of_the_student_and_none_of_the_teacher(config, batch):
    config.separate_ibot_head = True
    config.backbone_config.drop_path_rate = 0.0
    model = DINOv2ForPreTraining(config).train()
    model(**batch, teacher_temperature=0.06).loss.backward()
    without = [name for name, p in model.student.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # A bias of the keys shifts all scores of a query alike, which softmax does not see.
    assert all(name.endswith("key.bias") for name in without)
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize("weight", ["dino_loss_weight", "ibot_loss_weight", "koleo_loss_weight"])
def test_a_part_can_be_left_out(config, batch, weight):
    setattr(config, weight, 0.0)
    output = DINOv2ForPreTraining(config).eval()(**batch, teacher_temperature=0.06)
    missing = {
        "dino_loss_weight": ("dino_local_loss", "dino_global_loss"),
        "ibot_loss_weight": ("ibot_loss",),
        "koleo_loss_weight": ("koleo_loss",),
    }[weight]
    assert all(getattr(output, name) is None for name in missing)
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp"])
def test_padding_changes_neither_loss_nor_gradient(config, batch, centering):
    config.centering, config.backbone_config.drop_path_rate = centering, 0.0
    padded = {"num_masked": torch.tensor(5)}
    padded |= {name: torch.nn.functional.pad(batch[name], (0, 6)) for name in ("masked_indices", "masked_weights")}
    model = DINOv2ForPreTraining(config).train()
    seen = []
    for more in ({}, padded):
        loss = model(**{**batch, **more}, teacher_temperature=0.06).loss
        weights = [p for p in model.student.parameters() if p.requires_grad]
        seen.append([loss, *torch.autograd.grad(loss, weights)])
        for name in ("dino_centering", "ibot_centering"):
            for buffer in getattr(model, name).buffers():
                seen[-1].append(buffer.clone())
                buffer.zero_()
    torch.testing.assert_close(*seen, atol=1e-6, rtol=1e-5)


def test_no_local_crops(config, batch):
    batch["local_crops"] = torch.empty(0, 3, 3, 16, 16)
    output = DINOv2ForPreTraining(config).train()(**batch, teacher_temperature=0.06)
    assert output.dino_local_loss is None
    output.loss.backward()


def test_save_and_load(tmp_path, config, batch):
    model = DINOv2ForPreTraining(config).train()
    model(**batch, teacher_temperature=0.06)  # moves the centres
    with torch.no_grad():
        model.teacher.dino_head.last_layer.weight_g.mul_(1.1)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(loaded) is DINOv2ForPreTraining
    assert model.dino_centering.center.abs().max() > 0
    for (name, one), (other_name, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name
    model.eval()
    loaded.eval()
    one, other = (network(**batch, teacher_temperature=0.06).loss for network in (model, loaded))
    assert torch.equal(one, other)


def test_forward_takes_what_the_collator_makes():
    from dinov2_hf.data import PreTrainingCollator, PreTrainingSample

    sample = PreTrainingSample(torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 16, 16), "row 0", 0, ())
    batch, _ = PreTrainingCollator(8, pad_masked=True)([sample])
    parameters = set(inspect.signature(DINOv2ForPreTraining.forward).parameters)
    assert parameters == {"self", "teacher_temperature", "loss_weights", *batch}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"centering": "sinkhorn"}, '`centering` is "sinkhorn"'),
        ({"num_prototypes": 0}, "`num_prototypes` is 0"),
        ({"koleo_loss_weight": -0.1}, "`koleo_loss_weight` is -0.1"),
        ({"dino_loss_weight": 0, "ibot_loss_weight": 0}, "nothing to learn"),
        ({"ibot_num_prototypes": 8}, "`separate_ibot_head` is False"),
        ({"separate_ibot_head": True, "ibot_loss_weight": 0}, "`ibot_loss_weight` is 0 .* without a use"),
        ({"separate_ibot_head": True, "dino_loss_weight": 0}, "`dino_loss_weight` is 0 .* without a use"),
        ({"student_temperature": 0}, "`student_temperature` is 0"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(StrictDataclassError, match=message):
        DINOv2PreTrainingConfig(**values)


def test_what_a_collapse_is_seen_by(config, batch):
    """Features of the teacher for each image's first crop, and the mean of its targets: copies, without gradient."""
    config.backbone_config.num_register_tokens = 3
    model = DINOv2ForPreTraining(config).train()
    output = model(**batch, teacher_temperature=0.06)
    tokens = model.teacher.backbone(batch["global_crops"][0]).last_hidden_state
    side = config.backbone_config.image_size // config.backbone_config.patch_size
    grid = tokens[:, 4:].view(len(tokens), side, side, -1)
    torch.testing.assert_close(output.cls_features, tokens[:, 0])
    torch.testing.assert_close(output.patch_features, grid[:, side // 2, side // 2])
    all_tokens = model.teacher.backbone(batch["global_crops"].flatten(0, 1)).last_hidden_state
    logits = model.teacher.dino_head(all_tokens[:, 0])
    targets = torch.softmax(logits / 0.06, dim=-1)  # the centre is 0 at the first step
    torch.testing.assert_close(output.mean_target, targets.mean(dim=0))
    for value in (output.mean_target, output.cls_features, output.patch_features):
        assert not value.requires_grad
        assert value.untyped_storage().nbytes() <= 2 * value.numel() * value.element_size()
