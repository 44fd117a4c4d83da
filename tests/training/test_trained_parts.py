"""A part of a backbone that is trained, while the rest costs nothing."""

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups
from dinov2_hf.training.trained_parts import add_adapters, merged_weights, train_last_blocks


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    config = DINOv2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=16, patch_size=4, num_register_tokens=2
    )
    return DINOv2Model(config).train()


def trained(backbone) -> set[str]:
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def backward(backbone) -> int:
    """One pass, and the bytes that it keeps for its gradients beside weights."""
    own = {parameter.data_ptr() for parameter in backbone.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = backbone(torch.randn(2, 3, 16, 16)).last_hidden_state.square().sum()
    loss.backward()
    return sum(kept.values())


def test_the_last_blocks_and_the_norm(backbone):
    train_last_blocks(backbone, 2)
    names = dict(backbone.named_parameters())
    assert trained(backbone) == {
        name for name in names if name.startswith(("encoder.layer.2.", "encoder.layer.3.", "layernorm."))
    }


def test_what_is_still_costs_nothing(backbone):
    """Three blocks of four: a quarter of the activations, and moments of the last block and the norm alone."""
    everything = backward(backbone)
    backbone.zero_grad()
    train_last_blocks(backbone, 1)
    assert backward(backbone) < 0.3 * everything
    assert {name for name, parameter in backbone.named_parameters() if parameter.grad is not None} == trained(backbone)
    holder = torch.nn.Module()
    holder.backbone = backbone
    groups = parameter_groups(holder, layerwise_decay=0.9, patch_embed_lr_multiplier=0.2)
    optimizer = build_optimizer(groups, adam_beta1=0.9, adam_beta2=0.999)
    optimizer.step()
    moments = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert moments == sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)


def test_merged_weights_compute_the_same(backbone):
    """Without adapters nothing changes; with them the sum is a network like any other."""
    plain, pixels = backbone.state_dict(), torch.randn(2, 3, 16, 16)
    assert merged_weights(plain) == plain
    names = set(plain)
    expected = backbone.eval()(pixels).last_hidden_state.detach()
    add_adapters(backbone, 2)
    assert all(".lora_" in name for name in trained(backbone))
    assert len(trained(backbone)) == 2 * 6 * 4  # of the six matrices of four blocks
    assert torch.equal(backbone(pixels).last_hidden_state, expected)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    other = DINOv2Model(backbone.config).eval()
    merged = merged_weights(backbone.state_dict())
    assert set(merged) == names
    other.load_state_dict(merged)
    changed = backbone(pixels).last_hidden_state
    torch.testing.assert_close(other(pixels).last_hidden_state, changed, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed, expected, atol=0.1)
