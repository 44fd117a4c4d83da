"""Where numbers that are not finite come from is told, forward and backward, and what follows them is not."""

import pytest
import torch
from torch import nn

from dinov2_hf.training.nonfinite_steps.finite_watch import FiniteWatch


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 1)

    def forward(self, values, *, root=False):
        hidden = self.first(values)
        distance = (hidden - hidden.detach()).abs().sum()
        if root:
            distance = torch.sqrt(distance)
        return distance + self.second(hidden.tanh()).square().sum()


def watched(network, values, **options) -> list:
    watch = FiniteWatch(network)
    with watch:
        network(values, **options).backward()
    network.zero_grad()
    return watch.birthplaces


def test_nothing_is_found_where_all_is_finite():
    assert watched(Network(), torch.ones(2, 3)) == []


def test_what_overflows_in_a_module_is_found_there_and_its_consequences_are_not():
    network = Network()
    network.first.weight.data.fill_(3e38)
    first = watched(network, torch.ones(2, 3))[0]
    assert (first.operation, first.module, first.is_backward) == ("addmm", "first", False)
    assert first.line.startswith("training/nonfinite_steps/test_finite_watch.py:")


def test_a_gradient_alone_is_found_at_the_line_that_made_its_operation():
    """The root of a distance of 0 is finite, and its gradient is not."""
    (found,) = watched(Network(), torch.ones(2, 3), root=True)
    assert found.is_backward
    assert "SqrtBackward0" in found.operation
    lines = open(__file__).read().splitlines()
    assert "torch.sqrt(distance)" in lines[int(found.line.rpartition(":")[2]) - 1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_have_no_birthplace(value):
    assert watched(Network(), torch.full((2, 3), value)) == []


def test_an_infinity_that_is_asked_for_is_none():
    watch = FiniteWatch(nn.Identity())
    with watch:
        scores = torch.full((2,), -torch.inf)
        torch.zeros(2).masked_fill(torch.tensor([True, False]), -torch.inf)
        scores.softmax(dim=0)
        torch.log(torch.zeros(1))
    assert [found.operation for found in watch.birthplaces] == ["log"]


def test_numbers_are_the_same_while_they_are_watched():
    network, values = Network(), torch.ones(2, 3)
    expected = network(values)
    with FiniteWatch(network):
        assert torch.equal(network(values), expected)
