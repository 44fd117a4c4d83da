"""Gram anchoring against the formula of the paper, written as loops."""

import pytest
import torch

from dinov2_hf import DINOv2ForPreTraining, DINOv2Model, DINOv2PreTrainingConfig
from dinov2_hf.pretraining.frozen_teacher import FrozenTeacher
from dinov2_hf.pretraining.gram_anchoring import gram_anchoring_loss


def test_equals_loops():
    student, anchor = torch.randn(2, 2, 3, 5), torch.randn(2, 2, 3, 7)
    total = 0.0
    for crop in range(2):
        ours, theirs = student[crop].flatten(0, 1), anchor[crop].flatten(0, 1)
        for i in range(6):
            for j in range(6):
                of_student = ours[i] @ ours[j] / ours[i].norm() / ours[j].norm()
                of_anchor = theirs[i] @ theirs[j] / theirs[i].norm() / theirs[j].norm()
                total += float(of_student - of_anchor) ** 2 / 36 / 2
    assert gram_anchoring_loss(student, anchor).item() == pytest.approx(total, rel=1e-5)


def test_features_may_turn_and_grow_together():
    student, turn = torch.randn(2, 2, 3, 5), torch.linalg.qr(torch.randn(5, 5)).Q
    assert gram_anchoring_loss(student, 3 * student @ turn).item() < 1e-10


def test_a_finer_grid_of_the_anchor_is_brought_to_the_students():
    fine = torch.randn(2, 2, 3, 5).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert gram_anchoring_loss(fine[:, :2, :3], fine).shape == ()
    constant = torch.randn(1, 1, 1, 5).expand(2, 8, 12, 5)
    assert gram_anchoring_loss(torch.ones(2, 2, 3, 4), constant).item() < 1e-10


def test_the_term_of_a_step(tiny_config):
    """It compares with the Gram teacher, moves the student only, and the teacher is in no state dict."""
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4, koleo_loss_weight=0
    )
    model, other = DINOv2ForPreTraining(config), DINOv2Model(tiny_config)
    names = set(model.state_dict())
    model.anchor_to(FrozenTeacher(other))
    crops = torch.randn(2, 2, 3, 32, 32)
    batch = {
        "global_crops": crops, "local_crops": torch.zeros(0, 2, 3, 16, 16),
        "bool_masked_pos": torch.zeros(4, 16, dtype=torch.bool),
        "masked_indices": torch.zeros(0, dtype=torch.long), "masked_weights": torch.zeros(0),
    }  # fmt: skip
    output = model(**batch, teacher_temperature=0.07, loss_weights={"gram_anchoring": 2.0})
    with torch.no_grad():
        maps = [net(crops.flatten(0, 1)).last_hidden_state[:, 1:] for net in (model.student.backbone, other)]
        expected = gram_anchoring_loss(*(tokens.unflatten(1, (4, 4)) for tokens in maps))
    torch.testing.assert_close(output["gram_anchoring_loss"].detach(), expected, rtol=1e-5, atol=1e-6)
    parts = output["dino_global_loss"] + output["ibot_loss"] + 2 * output["gram_anchoring_loss"]
    torch.testing.assert_close(output.loss, parts)
    output["gram_anchoring_loss"].backward()
    assert model.student.backbone.embeddings.cls_token.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in other.parameters())
    assert set(model.state_dict()) == names


def test_without_a_gram_teacher_the_term_says_so(tiny_config):
    model = DINOv2ForPreTraining(DINOv2PreTrainingConfig(backbone_config=tiny_config, num_prototypes=8))
    with pytest.raises(ValueError, match="but there is none; set `gram_teacher`"):
        model(
            torch.randn(2, 2, 3, 32, 32), torch.zeros(0, 2, 3, 16, 16), torch.zeros(4, 16, dtype=torch.bool),
            torch.zeros(0, dtype=torch.long), torch.zeros(0), 0.07, {"gram_anchoring": 1.0},
        )  # fmt: skip
