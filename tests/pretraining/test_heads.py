"""Projection heads: parameter counts of the specification, the formula written out, initialisation."""

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.pretraining.heads import ProjectionHead, Prototypes


@pytest.mark.parametrize(
    ("hidden_size", "bottleneck", "prototypes", "expected"),
    [
        (1024, 256, 65536, 23_662_848), (1024, 384, 131072, 57_545_088),
        (1536, 384, 131072, 58_593_664), (1536, 256, 131072, 41_554_176),
    ],
)  # fmt: skip
def test_parameter_counts(hidden_size, bottleneck, prototypes, expected):
    with torch.device("meta"):
        head = ProjectionHead(hidden_size, prototypes, head_hidden_size=2048, bottleneck_size=bottleneck, num_layers=3)
    assert sum(p.numel() for p in head.parameters()) == expected
    assert [name for name, _ in head.named_parameters()] == [
        "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "mlp.4.weight", "mlp.4.bias",
        "last_layer.weight_g", "last_layer.weight_v",
    ]  # fmt: skip


def test_prototypes_equal_the_formula():
    layer = Prototypes(4, 6)
    with torch.no_grad():
        layer.weight_g.copy_(torch.rand(6, 1) + 0.5)
    x = torch.randn(3, 4)
    for k in range(6):
        direction = layer.weight_v[k] / layer.weight_v[k].norm()
        torch.testing.assert_close(layer(x)[:, k], layer.weight_g[k] * (x @ direction))


def test_logits_do_not_depend_on_the_scale_of_the_bottleneck():
    head = ProjectionHead(8, 5, head_hidden_size=8, bottleneck_size=4, num_layers=1)
    assert len(head.mlp) == 1
    x = torch.randn(3, 8)
    bias_free = head.mlp[0]
    with torch.no_grad():
        bias_free.bias.zero_()
    torch.testing.assert_close(head(x), head(7 * x))


def test_initial_weights_inside_the_model():
    config = DINOv2PreTrainingConfig(
        backbone_config=DINOv2Config(hidden_size=64, num_hidden_layers=1, num_attention_heads=2),
        num_prototypes=512,
        head_hidden_size=256,
        bottleneck_size=64,
    )
    head = DINOv2ForPreTraining(config).student.dino_head
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.mlp[4].bias.abs().max() == 0
    assert (head.last_layer.weight_g == 1).all()
    assert head.last_layer.weight_v.abs().max() <= 64**-0.5
    assert head.last_layer.weight_v.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)


def test_the_bottleneck_is_normalised_in_float32_under_autocast():
    """Of a bf16 projection, on any device: with its norm in bf16 too, a row could be off by two roundings."""
    torch.manual_seed(0)
    head = ProjectionHead(16, 24, head_hidden_size=16, bottleneck_size=12, num_layers=1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        tokens = torch.randn(64, 16)
        projected = head.mlp(tokens)
        rows, _ = head(tokens, factored=True)
    expected = (projected.float() / projected.float().norm(dim=1, keepdim=True)).bfloat16()
    assert torch.equal(rows, expected)
