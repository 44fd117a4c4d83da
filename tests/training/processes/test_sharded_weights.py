"""Weights that are not sharded are left where they are; tests/distributed has the sharded ones."""

import torch

from dinov2_hf import DINOv2Model
from dinov2_hf.training.processes.sharded_weights import (
    is_sharded,
    local_share,
    num_parameters,
    whole_copy,
    whole_weights,
)


def test_a_plain_module_is_its_own_whole(tiny_config):
    model = DINOv2Model(tiny_config)
    assert not is_sharded(model)
    assert num_parameters(model) == sum(value.numel() for value in model.parameters())
    assert whole_copy(model) is model
    weights = whole_weights(model, keep=True)
    assert list(weights) == list(model.state_dict())
    assert all(weights[name].data_ptr() == value.data_ptr() for name, value in model.state_dict().items())
    assert whole_weights(model, keep=False) == {}


def test_buffers_that_are_not_saved_stay_out():
    module = torch.nn.Linear(2, 2)
    module.register_buffer("scratch", torch.ones(1), persistent=False)
    module.register_buffer("center", torch.ones(1))
    assert set(whole_weights(module, keep=True)) == {"weight", "bias", "center"}


def test_a_share_is_changed_in_place():
    parameter = torch.nn.Parameter(torch.zeros(3))
    local_share(parameter).add_(1)
    assert parameter.tolist() == [1, 1, 1]
