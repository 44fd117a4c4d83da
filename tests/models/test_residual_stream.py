"""The training step's short way through a block equals the plain one: outputs, and gradients of all parameters."""

import copy

import pytest
import torch
from torch import nn

from dinov2_hf import DINOv2Model
from dinov2_hf.models.crop_packing import draw_kept_crops, pack_crops


def observed(model: nn.Module) -> nn.Module:
    """A copy whose blocks run plainly, because somebody looks at what a part of each of them gives."""
    twin = copy.deepcopy(model)
    for layer in twin.encoder.layer:
        layer.layer_scale1.register_forward_hook(lambda *_: None)
        assert not layer.is_eager_training()
    return twin


def spread_out(model: nn.Module) -> nn.Module:
    """Random values of different sizes for all that is initialised to one value."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "lambda1")) or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def run(model: nn.Module, crops: list[torch.Tensor], packed: bool, seed: int = 3) -> tuple[list, list]:
    torch.manual_seed(seed)
    outputs = model.forward_crops(crops, packed=packed)
    weights = [torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape) for out in outputs]
    sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True)).backward()
    return outputs, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
@pytest.mark.parametrize(("swiglu", "qkv_bias"), [(False, True), (True, False)])
def test_equals_the_plain_block(tiny_config, packed, drop_path_rate, swiglu, qkv_bias):
    tiny_config.drop_path_rate, tiny_config.use_swiglu_ffn = drop_path_rate, swiglu
    tiny_config.qkv_bias = qkv_bias
    model = spread_out(DINOv2Model(tiny_config)).double().train()
    assert model.encoder.layer[0].is_eager_training()
    crops = [torch.randn(4, 3, 32, 32).double(), torch.randn(6, 3, 16, 16).double()]
    (outputs, gradients), (plain, expected) = (run(one, crops, packed) for one in (model, observed(model)))
    for one, other in zip([*outputs, *gradients], [*plain, *expected], strict=True):
        assert (one is None) == (other is None)  # the mask token is not used
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_under_autocast_it_is_as_near_to_the_truth(tiny_config, drop_path_rate, dtype):
    """The truth is float64; the plain block under autocast is what it is measured beside."""
    tiny_config.drop_path_rate = drop_path_rate
    model = spread_out(DINOv2Model(tiny_config)).train()
    twin = observed(model)
    crops = [torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)]
    _, truth = run(copy.deepcopy(model).double(), [crop.double() for crop in crops], packed=True)
    errors = []
    for network in (model, twin):
        with torch.autocast("cpu", dtype):
            _, gradients = run(network, crops, packed=True)
        errors.append({
            name: ((gradient.double() - true).norm() / true.norm()).item()
            for (name, _), gradient, true in zip(model.named_parameters(), gradients, truth, strict=True)
            if true is not None and not name.endswith("key.bias")  # whose gradient is 0
        })  # fmt: skip
    ours, plain = errors
    assert max(ours.values()) < (0.15 if dtype == torch.bfloat16 else 0.01)
    assert sum(ours.values()) < 1.5 * sum(plain.values())


def test_a_gain_of_zero_has_its_gradient(tiny_config):
    """It is not the quotient of two other gradients."""
    model = DINOv2Model(tiny_config).double().train()
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.layer_scale1.lambda1.zero_()
    crops = [torch.randn(4, 3, 32, 32).double()]
    (_, gradients), (_, expected) = (run(one, crops, True) for one in (model, observed(model)))
    for one, other in zip(gradients, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    assert model.encoder.layer[0].layer_scale1.lambda1.grad.abs().min() > 0


def test_the_input_of_a_block_is_left_alone(tiny_config):
    """The second branch adds in place to what the first one made, and to nothing else."""
    tiny_config.drop_path_rate = 0.5
    layer = DINOv2Model(tiny_config).train().encoder.layer[0]
    packed, packing = pack_crops([torch.randn(4, 5, 32), torch.randn(6, 3, 32)])
    packed.requires_grad_()
    before, kept = packed.detach().clone(), draw_kept_crops(packing, 0.5, packed.device, num_branches=2)
    output = layer(packed, packing, kept)
    gradient = torch.randn_like(output)
    handed_in = gradient.clone()
    output.backward(handed_in)
    assert torch.equal(packed, before)
    assert torch.equal(handed_in, gradient)


def test_an_adapter_is_used(tiny_config):
    """A layer in place of a linear map is called, as for instance adapters of few ranks are."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base
            self.extra = nn.Linear(base.in_features, base.out_features, bias=False)

        def forward(self, hidden_states):
            return self.base(hidden_states) + self.extra(hidden_states)

    model = DINOv2Model(tiny_config).train()
    attention, mlp = model.encoder.layer[0].attention, model.encoder.layer[1].mlp
    attention.attention.query, mlp.fc2 = Adapted(attention.attention.query.requires_grad_(False)), Adapted(mlp.fc2)
    model(torch.randn(2, 3, 32, 32)).last_hidden_state.square().sum().backward()
    for adapted in (attention.attention.query, mlp.fc2):
        assert adapted.extra.weight.grad.abs().sum() > 0
