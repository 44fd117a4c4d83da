"""Positions that were resized once serve again at inference, and never where something has changed."""

import copy
import io

import pytest
import torch

from dinov2_hf import DINOv2Model
from dinov2_hf.models.position_interpolation import interpolate_position_embeddings, remembered_position_embeddings


@pytest.fixture
def embeddings(tiny_config, spread):
    return spread(DINOv2Model(tiny_config)).embeddings


def remembered(embeddings, grid=(2, 3), **changed):
    values = {"offset": embeddings.interpolate_offset, "antialias": embeddings.interpolate_antialias} | changed
    found = remembered_position_embeddings(embeddings, embeddings.position_embeddings, grid, **values)
    expected = interpolate_position_embeddings(embeddings.position_embeddings, grid, **values)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    return found


@torch.no_grad()
def test_the_same_positions_serve_again(embeddings):
    first = remembered(embeddings)
    assert remembered(embeddings) is first
    for mode in (embeddings.train, embeddings.eval):
        mode()
        assert remembered(embeddings) is first


@torch.no_grad()
def test_what_has_changed_is_noticed(embeddings):
    remembered(embeddings)
    weight = embeddings.position_embeddings
    weight.data[0, 1, 0] += 1  # which no version counter tells
    remembered(embeddings)
    weight.mul_(2)
    remembered(embeddings)
    embeddings.load_state_dict({name: value + 1 for name, value in embeddings.state_dict().items()})
    remembered(embeddings)
    remembered(embeddings, (3, 2))
    remembered(embeddings, antialias=True)
    remembered(embeddings, offset=0.0)
    embeddings.double()
    remembered(embeddings)
    embeddings.position_embeddings = torch.nn.Parameter(torch.randn(1, 1 + 3 * 3, weight.shape[-1]))
    remembered(embeddings)


def test_gradients_flow_through_a_new_resizing(embeddings):
    with torch.no_grad():
        first = remembered(embeddings)
    second = remembered(embeddings)
    assert second is not first
    second.sum().backward()
    assert embeddings.position_embeddings.grad.abs().sum() > 0


@torch.no_grad()
def test_nothing_of_it_is_saved_copied_or_exported(embeddings):
    def saved() -> int:
        torch.save(embeddings, buffer := io.BytesIO())
        return len(buffer.getvalue())

    names, size = list(embeddings.state_dict()), saved()
    first = remembered(embeddings, (7, 9))
    assert list(embeddings.state_dict()) == names
    assert saved() == size
    twin = copy.deepcopy(embeddings)
    assert remembered(twin, (7, 9)) is not first
    pixels = torch.randn(1, 3, 16, 24)
    embeddings(pixels)
    graph = torch.export.export(embeddings, (pixels,)).graph_module
    assert any("bicubic" in str(node.target) for node in graph.graph.nodes)
