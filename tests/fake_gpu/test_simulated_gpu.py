"""What the simulation counts: against sums done by hand, and against mistakes that are planted."""

from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture
def gpu():
    import simulated_gpu

    return simulated_gpu


def test_bytes_products_and_memory_of_three_kernels(gpu):
    with gpu.fake_device("cpu"):
        left, right = torch.empty(100, 64), torch.empty(64, 32, dtype=torch.float32)
        with gpu.Costs() as costs:
            costs.hold(left, right)
            product = left @ right
            total = (product + 1).sum()
            del product
            view = total.view(1)
    assert view.shape == (1,)
    assert costs.product_flops == 2 * 100 * 64 * 32
    assert costs.product_bytes == 4 * (100 * 64 + 64 * 32 + 100 * 32)
    assert costs.other_bytes == {"add": 2 * 4 * 100 * 32, "sum": 4 * (100 * 32 + 1)}
    assert costs.num_kernels == 3
    inputs, one = 4 * (100 * 64 + 64 * 32), 4 * 100 * 32
    assert costs.peak_bytes == inputs + 2 * one + 4  # the product, the sum with 1, its total


def test_rows_that_are_taken_and_added(gpu):
    with gpu.fake_device("cpu"):
        rows, index, few = torch.empty(1000, 8), torch.empty(10, dtype=torch.long), torch.empty(10, 8)
        with gpu.Costs() as costs:
            rows.index_select(0, index)
            rows.index_add_(0, index, few)
            rows.index_add(0, index, few)
    taken = 4 * 10 * 8
    assert costs.other_bytes["index_select"] == 2 * taken + 8 * 10
    assert costs.other_bytes["index_add_"] == 3 * taken + 8 * 10
    assert costs.other_bytes["index_add"] == 3 * taken + 8 * 10 + 2 * 4 * 1000 * 8


def test_memory_of_a_backward_pass_is_let_go(gpu):
    with gpu.fake_device("cpu"):
        layers, inputs = nn.Sequential(*[nn.Linear(32, 32) for _ in range(4)]), torch.empty(64, 32)
        with gpu.Costs() as costs:
            costs.hold(inputs, *layers.parameters())
            before = costs.current_bytes
            loss = layers(inputs).sum()
            activations = costs.current_bytes - before
            loss.backward()
            del loss
            gradients = costs.current_bytes - before
            layers.zero_grad()
            left = costs.current_bytes - before
    # The output of the last layer is not needed: its sum's gradient does not depend on it.
    assert activations == 3 * 4 * 64 * 32 + 4
    assert gradients == 4 * 4 * (32 * 32 + 32)
    assert left == 0


WAITS = {
    "item": lambda tensor: tensor.sum().item(),
    "float": lambda tensor: float(tensor.sum()),
    "if": lambda tensor: 1 if tensor.sum() > 0 else 0,
    "to the host": lambda tensor: tensor.cpu(),
    "list index": lambda tensor: tensor[:, [0, 2]],
    "index of the host": lambda tensor: tensor[torch.tensor([0, 2], device="cpu")],
    "mask index": lambda tensor: tensor[tensor > 0],
    "nonzero": lambda tensor: tensor.nonzero(),
    "number to the device": lambda tensor: tensor + torch.tensor(1.0),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_planted_synchronisation_is_caught(gpu, name):
    """With the line that asks for it; kernels whose result's size is not known end the step there."""
    with gpu.fake_device("cuda"):
        tensor = torch.empty(4, 4)
        with gpu.Costs() as costs:
            try:
                WAITS[name](tensor)
            except torch._subclasses.fake_tensor.DynamicOutputShapeException:
                assert name in ("mask index", "nonzero")
    assert len(costs.synchronisations) == 1
    place = costs.synchronisations[0].split(" at ")[1]
    assert place.startswith(f"{Path(__file__)}:")


NEVER_WAITS = {
    "kernels": lambda tensor: (tensor + 1).softmax(dim=-1),
    "slice": lambda tensor: tensor[:, 1:3],
    "index of the device": lambda tensor: tensor[torch.arange(2)],
    "copy in the background": lambda tensor: torch.empty(4, device="cpu").to("cuda", non_blocking=True),
    "permutation": lambda tensor: torch.randperm(4),
    "where": lambda tensor: torch.where(tensor > 0, tensor, 0.0),
}


@pytest.mark.parametrize("name", NEVER_WAITS)
def test_what_does_not_wait_is_not_reported(gpu, name):
    with gpu.fake_device("cuda"):
        tensor = torch.empty(4, 4)
        with gpu.Costs() as costs:
            NEVER_WAITS[name](tensor)
    assert costs.synchronisations == []


def test_a_planted_device_mismatch_is_caught(gpu):
    with gpu.fake_device("cuda"):
        tensor, forgotten = torch.empty(4, 4), torch.empty(4, device="cpu")
        with gpu.Costs(), pytest.raises(RuntimeError, match="cuda:0 and cpu"):
            tensor + forgotten


def test_nothing_is_left_behind(gpu):
    """A backward pass on real tensors, and what torch says of GPUs, are as before."""
    before = torch.cuda.is_available(), torch.cuda._lazy_init
    with gpu.fake_device("cuda"):
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available(), torch.cuda._lazy_init) == before
    weight = torch.ones(3, requires_grad=True)
    weight.square().sum().backward()
    assert weight.grad.tolist() == [2, 2, 2]
