"""What two accumulated batches of 4 images have in common with one batch of 8, and what not (docs/pretraining.md)."""

import pytest
import torch

from dinov2_hf import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.data import draw_masks


NUM_IMAGES = 8


@pytest.fixture
def batch():
    import random

    masks = draw_masks(2 * NUM_IMAGES, (4, 4), mask_probability=0.5, mask_ratio=(0.2, 0.6), rng=random.Random(0))
    crops = {
        "global_crops": torch.randn(2, NUM_IMAGES, 3, 32, 32),
        "local_crops": torch.randn(2, NUM_IMAGES, 3, 16, 16),
    }
    return crops | with_masks(masks)


def with_masks(masks: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "bool_masked_pos": masks,
        "masked_indices": masks.flatten().nonzero().squeeze(1),
        "masked_weights": (1.0 / masks.sum(dim=1, keepdim=True)).expand_as(masks)[masks],
    }


def split(batch: dict[str, torch.Tensor], parts: int) -> list[dict[str, torch.Tensor]]:
    """The same images, crops and masks in several batches."""
    masks = batch["bool_masked_pos"].unflatten(0, (2, NUM_IMAGES)).chunk(parts, dim=1)
    crops = [batch[name].chunk(parts, dim=1) for name in ("global_crops", "local_crops")]
    return [
        {"global_crops": large, "local_crops": small} | with_masks(mask.flatten(0, 1))
        for large, small, mask in zip(*crops, masks, strict=True)
    ]


def gradient(config: DINOv2PreTrainingConfig, batch: dict[str, torch.Tensor], parts: int) -> torch.Tensor:
    """Of all weights of the student, added up over `parts` batches as Accelerate does, in one vector."""
    torch.manual_seed(1)
    model = DINOv2ForPreTraining(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for part in split(batch, parts):
        (model(**part, teacher_temperature=0.06).loss / parts).backward()
    return torch.cat([p.grad.flatten() for p in model.student.parameters()])


def difference(tiny_config, batch, **values) -> float:
    """Distance of the two gradients over the length of one."""
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=24, head_hidden_size=20, bottleneck_size=12, **values
    )
    whole, accumulated = (gradient(config, batch, parts) for parts in (1, 2))
    return float((whole - accumulated).norm() / whole.norm())


FIXED_CENTRE = {"centering": "softmax", "center_momentum": 1.0}
EQUAL = {
    "DINO and iBOT": {"koleo_loss_weight": 0},
    "DINO": {"koleo_loss_weight": 0, "ibot_loss_weight": 0},
    "iBOT": {"koleo_loss_weight": 0, "dino_loss_weight": 0},
    "heads of their own": {"koleo_loss_weight": 0, "separate_ibot_head": True},
}
DIFFERENT = {
    "KoLeo": FIXED_CENTRE | {"koleo_loss_weight": 0.1},
    "Sinkhorn-Knopp": {"koleo_loss_weight": 0, "centering": "sinkhorn_knopp"},
    "a centre that moves": {"koleo_loss_weight": 0, "center_momentum": 0.9},
}


@pytest.mark.parametrize("values", EQUAL.values(), ids=EQUAL)
def test_means_over_images_accumulate_exactly(tiny_config, batch, values):
    assert difference(tiny_config, batch, **FIXED_CENTRE | values) < 1e-5


@pytest.mark.parametrize("values", DIFFERENT.values(), ids=DIFFERENT)
def test_what_looks_across_images_does_not(tiny_config, batch, values):
    assert difference(tiny_config, batch, **values) > 1e-3


def test_the_centre_moves_once_for_each_forward_pass(tiny_config, batch):
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=24, head_hidden_size=20, bottleneck_size=12, center_momentum=0.8
    )
    torch.manual_seed(1)
    model = DINOv2ForPreTraining(config).train()
    parts = split(batch, 2)
    with torch.no_grad():
        means = [
            model.teacher.dino_head(model.teacher.backbone(part["global_crops"].flatten(0, 1)).pooler_output).mean(0)
            for part in parts
        ]
        for part in parts:
            model(**part, teacher_temperature=0.06)
    torch.testing.assert_close(model.dino_centering.center, 0.8 * 0.2 * means[0] + 0.2 * means[1])
