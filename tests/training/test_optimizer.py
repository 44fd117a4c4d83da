"""Parameter groups against the original's table (specification, section 8.1), clipping, writing of schedules."""

from collections import Counter

import pytest
import torch
from accelerate import Accelerator

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.training.optimizer import (
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_schedule,
    weight_decay_multiplier,
)
from dinov2_hf.training.schedules import ScheduleValues

from ..parity.original_names import fused_parameters


def student(hidden_size=384, layers=12, heads=6, **values):
    config = DINOv2PreTrainingConfig(
        backbone_config=DINOv2Config(
            hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=heads, patch_size=16
        ),
        num_prototypes=8,
        head_hidden_size=8,
        bottleneck_size=4,
        **values,
    )
    with torch.device("meta"):
        return DINOv2ForPreTraining(config).student


@pytest.mark.parametrize(
    ("hidden_size", "layers", "heads", "num_original", "num_groups", "tokens", "patch", "blocks"),
    [
        (384, 12, 6, 175, 28, 0.2541865828, 0.05083731657, {0: 0.2824295365, 11: 0.9}),
        (1024, 24, 16, 343, 52, 0.07178979877, 0.01435795975, {0: 0.07976644308, 11: 0.2541865828, 23: 0.9}),
    ],
)
def test_layerwise_decay(hidden_size, layers, heads, num_original, num_groups, tokens, patch, blocks):
    network = student(hidden_size, layers, heads)
    groups = parameter_groups(network, layerwise_decay=0.9, patch_embed_lr_multiplier=0.2)
    assert len([group for group in groups if group["part"] == "backbone"]) == num_groups
    assert len([name for name in fused_parameters(network) if name.startswith("backbone.")]) == num_original
    multiplier = {id(p): group["lr_multiplier"] for group in groups for p in group["params"]}
    embeddings = network.backbone.embeddings
    for token in (embeddings.cls_token, embeddings.mask_token, embeddings.position_embeddings):
        assert multiplier[id(token)] == pytest.approx(tokens, rel=1e-9)
    assert multiplier[id(embeddings.patch_embeddings.projection.weight)] == pytest.approx(patch, rel=1e-9)
    for block, expected in blocks.items():
        assert multiplier[id(network.backbone.encoder.layer[block].mlp.fc1.weight)] == pytest.approx(expected)
    assert multiplier[id(network.backbone.layernorm.weight)] == 1
    assert multiplier[id(network.dino_head.mlp[0].weight)] == 1


@pytest.mark.parametrize("separate", [False, True])
def test_every_parameter_is_in_exactly_one_group(separate):
    network = student(separate_ibot_head=separate)
    groups = parameter_groups(network, layerwise_decay=1.0, patch_embed_lr_multiplier=0.2)
    counts = Counter(id(p) for group in groups for p in group["params"])
    assert set(counts) == {id(p) for p in network.parameters()}
    assert set(counts.values()) == {1}
    by_part = Counter(group["part"] for group in groups)
    assert by_part == {"backbone": 4, "dino_head": 3, **({"ibot_head": 3} if separate else {})}


def test_what_is_decayed():
    decayed = {name for name, _ in student().named_parameters() if weight_decay_multiplier(name)}
    for name in ("embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings"):
        assert f"backbone.{name}" in decayed
    assert {"dino_head.last_layer.weight_g", "dino_head.last_layer.weight_v"} <= decayed
    assert not any(name.endswith("bias") or "norm" in name or "layer_scale" in name for name in decayed)


def test_schedule_reaches_every_group(tiny_config):
    network = DINOv2ForPreTraining(
        DINOv2PreTrainingConfig(backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4)
    ).student
    groups = parameter_groups(network, layerwise_decay=0.5, patch_embed_lr_multiplier=0.2)
    optimizer = build_optimizer(groups, adam_beta1=0.9, adam_beta2=0.999)
    set_schedule(optimizer, ScheduleValues(0.1, 0.0, 0.3, 0.99, 0.07, 0.05))
    for group in optimizer.param_groups:
        rate = 0.05 if group["part"] == "backbone" else 0.1
        assert group["lr"] == (0.0 if group["is_last_layer"] else pytest.approx(rate * group["lr_multiplier"]))
        assert group["weight_decay"] == pytest.approx(0.3 * group["weight_decay_multiplier"])


@pytest.mark.parametrize("per_part", [True, False])
def test_clipping(tiny_config, per_part):
    network = DINOv2ForPreTraining(
        DINOv2PreTrainingConfig(backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4)
    ).student
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    norms = clip_gradients(Accelerator(cpu=True), {"": network}, 3.0, per_part=per_part)

    def norm(gradients) -> float:
        return sum(g.double().square().sum().item() for g in gradients) ** 0.5

    parts = ("backbone", "dino_head") if per_part else ("",)
    for part in parts:
        expected = norm(gradient for name, gradient in before.items() if name.startswith(part))
        assert norms[f"grad_norm_{part}" if part else "grad_norm"].item() == pytest.approx(expected, rel=1e-5)
        clipped = norm(p.grad for name, p in network.named_parameters() if name.startswith(part))
        assert clipped == pytest.approx(3.0, rel=1e-4)
