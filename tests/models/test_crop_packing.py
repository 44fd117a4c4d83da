"""Packing and efficient stochastic depth (specification, sections 2 and 3)."""

import pytest
import torch

from dinov2_hf import DINOv2Model
from dinov2_hf.models.crop_packing import CropPacking, draw_kept_crops, num_kept, pack_crops, unpack_crops


def test_unpack_is_the_inverse_of_pack():
    crops = [torch.randn(3, 5, 4), torch.randn(2, 7, 4)]
    packed, packing = pack_crops(crops)
    assert packed.shape == (1, 3 * 5 + 2 * 7, 4)
    assert packing == CropPacking((3, 2), (5, 7))
    assert all(torch.equal(one, other) for one, other in zip(crops, unpack_crops(packed, packing), strict=True))


@pytest.mark.parametrize(
    ("images", "rate", "kept", "scale"),
    [
        (128, 0.3, 89, 1.438202), (128, 0.4, 76, 1.684211), (24, 0.4, 14, 1.714286), (512, 0.3, 358, 1.430168),
        (96, 0.4, 57, 1.684211), (2, 0.4, 1, 2.0), (1, 0.4, 1, 1.0), (10, 0.1, 9, 1.111111),
    ],
)  # fmt: skip
def test_subset_sizes_of_the_original(images, rate, kept, scale):
    assert num_kept(images, rate) == kept
    draws = draw_kept_crops(CropPacking((images,), (3,)), rate, torch.device("cpu"), num_branches=2)
    for draw in draws:
        assert draw.packing == CropPacking((kept,), (3,))
        assert draw.scales == (pytest.approx(scale, abs=1e-6),)
        whole_crops = draw.tokens.view(kept, 3)
        assert (whole_crops % 3 == torch.arange(3)).all()
        assert len(whole_crops[:, 0].unique()) == kept
    assert images < 3 or not torch.equal(draws[0].tokens, draws[1].tokens)  # branches draw independently


def test_stochastic_depth_equals_the_formula(tiny_config):
    """Crop by crop: x + (n / s) * branch(x) for kept crops, x for the others."""
    tiny_config.drop_path_rate, tiny_config.num_hidden_layers = 0.5, 1
    layer = DINOv2Model(tiny_config).train().encoder.layer[0]
    crops = [torch.randn(4, 5, 32), torch.randn(6, 3, 32)]
    packed, packing = pack_crops(crops)
    draws = draw_kept_crops(packing, 0.5, packed.device, num_branches=2)
    result = unpack_crops(layer(packed, packing, draws), packing)
    expected = [crop.clone() for crop in crops]
    branches = (
        lambda x: layer.layer_scale1(layer.attention(layer.norm1(x))),
        lambda x: layer.layer_scale2(layer.mlp(layer.norm2(x))),
    )
    for branch, draw in zip(branches, draws, strict=True):
        first_token = 0
        for group in expected:
            keep = len(group) // 2
            kept = [crop for crop in range(len(group)) if first_token + crop * group.shape[1] in draw.tokens]
            assert len(kept) == keep
            for crop in kept:
                group[crop] = group[crop] + len(group) / keep * branch(group[crop][None])[0].detach()
            first_token += group.shape[0] * group.shape[1]
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_single_resolution_drops_too(tiny_config):
    tiny_config.drop_path_rate = 0.5
    model = DINOv2Model(tiny_config).train()
    pixels = torch.randn(8, 3, 32, 32)
    torch.manual_seed(1)
    one = model(pixels).last_hidden_state
    torch.manual_seed(1)
    (other,) = model.forward_crops([pixels], packed=True)
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, model.eval()(pixels).last_hidden_state, atol=1e-3)


def test_nothing_is_dropped_in_evaluation(tiny_config):
    tiny_config.drop_path_rate = 0.5
    model = DINOv2Model(tiny_config).eval()
    pixels = torch.randn(8, 3, 32, 32)
    assert torch.equal(model(pixels).last_hidden_state, model(pixels).last_hidden_state)
