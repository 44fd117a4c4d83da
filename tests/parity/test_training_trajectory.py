"""Appendix A of the specification: losses, gradient norms and four optimizer steps of the original, to 1e-5."""

import re

import pytest
import torch
from accelerate import Accelerator

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_schedule
from dinov2_hf.training.schedules import ScheduleValues

from .original_names import fill_with_waves


TEACHER_TEMPERATURE = 0.05


def build_model(separate: bool, centering: str, num_register_tokens: int = 0, chunks: int = 0):
    backbone_config = DINOv2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        image_size=32,
        num_register_tokens=num_register_tokens,
    )
    separate_shape = {"ibot_num_prototypes": 16, "ibot_bottleneck_size": 8} if separate else {}
    config = DINOv2PreTrainingConfig(
        backbone_config=backbone_config,
        num_prototypes=24,
        head_hidden_size=20,
        bottleneck_size=12,
        separate_ibot_head=separate,
        centering=centering,
        **separate_shape,
    )
    model = DINOv2ForPreTraining(config)

    def chunked(name: str) -> str:
        size = max(2 // max(chunks, 1), 1)
        return re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", name) if chunks else name

    fill_with_waves(model.student, phase=0.0, rename=chunked)
    fill_with_waves(model.teacher, phase=1.0, rename=chunked)
    return model.train()


def images(num_images: int, size: int, phase: float) -> torch.Tensor:
    k = torch.arange(num_images * 3 * size * size, dtype=torch.float64)
    waves = torch.sin(0.013 * k + phase + 0.7 * torch.sin((0.0007 * k * k) % 6.28))
    return waves.float().view(num_images, 3, size, size)


@pytest.fixture
def batch():
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[0, [1, 2, 5, 6, 9]] = True
    mask[3, [0, 4, 8, 12, 13, 15]] = True
    return {
        "global_crops": images(4, 32, 0.3).unflatten(0, (2, 2)),
        "local_crops": images(6, 16, 1.1).unflatten(0, (3, 2)),
        "bool_masked_pos": mask,
        "masked_indices": mask.flatten().nonzero().flatten(),
        "masked_weights": torch.tensor([1 / 5] * 5 + [1 / 6] * 6),
    }


def assert_parts(output, local, global_, half_koleo, half_ibot):
    """The original logs KoLeo and iBOT at half of their contribution."""
    parts = (output.dino_local_loss, output.dino_global_loss, 0.1 * output.koleo_loss / 2, output.ibot_loss / 2)
    for part, expected in zip(parts, (local, global_, half_koleo, half_ibot), strict=True):
        assert part.item() == pytest.approx(expected, abs=1e-5)


# step: local, global, KoLeo / 2, iBOT / 2, norms of backbone, DINO head, iBOT head, sums of |student| and |teacher|
TRAJECTORY = [
    (5.453139, 1.851864, 0.147552, 1.888680, 7.96739, 88.89665, 33.09337, 4649.40113, 4628.66332),
    (4.628737, 1.494122, 0.073085, 1.667943, 13.88048, 56.94301, 27.06581, 4649.18823, 4609.19955),
    (3.612599, 1.151792, 0.030822, 1.381593, 16.03091, 54.54926, 24.63493, 4649.09592, 4590.24118),
    (2.714739, 0.870327, 0.012136, 1.054130, 13.66254, 40.17376, 18.48793, 4649.03303, 4571.78213),
]


@pytest.mark.parametrize("packed", [True, False])
def test_four_optimizer_steps(batch, packed):
    model = build_model(separate=True, centering="sinkhorn_knopp")
    model.is_packed = packed
    assert sum(parameter.numel() for parameter in model.student.parameters()) == 35_420
    groups = parameter_groups(model.student, layerwise_decay=0.9, patch_embed_lr_multiplier=0.2)
    assert len(groups) == 14
    optimizer = build_optimizer(groups, adam_beta1=0.9, adam_beta2=0.999)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    for step, expected in enumerate(TRAJECTORY):
        now = ScheduleValues(1e-3, 0.0 if step == 0 else 1e-3, 0.04, 0.99, TEACHER_TEMPERATURE, 1e-3)
        set_schedule(optimizer, now)
        output = model(**batch, teacher_temperature=now.teacher_temperature)
        assert_parts(output, *expected[:4])
        if step == 0:
            assert output.loss.item() == pytest.approx(11.377468, abs=1e-5)
        optimizer.zero_grad()
        output.loss.backward()
        norms = clip_gradients(accelerator, model.students, 3.0, per_part=True)
        assert [norm.item() for norm in norms.values()] == pytest.approx(expected[4:7], rel=1e-5)
        assert list(norms) == ["grad_norm_backbone", "grad_norm_dino_head", "grad_norm_ibot_head"]
        optimizer.step()
        update_ema(model.teacher, model.student, now.teacher_momentum)
        for network, total in ((model.student, expected[7]), (model.teacher, expected[8])):
            absolute = sum(parameter.detach().double().abs().sum() for parameter in network.parameters())
            assert absolute.item() == pytest.approx(total, rel=1e-6)


def test_teacher_features(batch):
    model = build_model(separate=True, centering="sinkhorn_knopp")
    with torch.no_grad():
        tokens = model.teacher.backbone(batch["global_crops"].flatten(0, 1)).last_hidden_state
    expected = [-1.6534650, 0.0981509, -0.3022695, 1.0572307]
    assert tokens[0, 0, :4].tolist() == pytest.approx(expected, abs=1e-5)
    assert tokens[:, 1:].sum().item() == pytest.approx(3.782799, abs=1e-4)


def test_shared_head_with_softmax_centering(batch):
    model = build_model(separate=False, centering="softmax")
    output = model(**batch, teacher_temperature=TEACHER_TEMPERATURE)
    assert_parts(output, 2.233733, 0.739816, 0.147552, 0.405713)
    assert output.loss.item() == pytest.approx(4.080080, abs=1e-5)
    output.loss.backward()
    norms = clip_gradients(Accelerator(cpu=True), model.students, 3.0, per_part=True)
    assert [norm.item() for norm in norms.values()] == pytest.approx([6.749096, 36.702351], rel=1e-5)
    again = model(**batch, teacher_temperature=TEACHER_TEMPERATURE)
    assert_parts(again, 2.261438, 0.749365, 0.147552, 0.418637)


def test_registers_and_chunked_blocks(batch):
    model = build_model(separate=True, centering="sinkhorn_knopp", num_register_tokens=4, chunks=2)
    output = model(**batch, teacher_temperature=TEACHER_TEMPERATURE)
    assert_parts(output, 5.669090, 1.922290, 0.148452, 1.934310)
    assert output.loss.item() == pytest.approx(11.756903, abs=1e-5)
