"""Packing and efficient stochastic depth (specification, sections 2 and 3)."""

import pytest
import torch

from dinov2_hf import DINOv2Model
from dinov2_hf.models.crop_packing import CropPacking, draw_kept_tokens, num_kept, pack_crops, unpack_crops


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
    indices, packing, scales = draw_kept_tokens(CropPacking((images,), (3,)), rate, torch.device("cpu"))
    assert packing == CropPacking((kept,), (3,))
    assert scales.unique().item() == pytest.approx(scale, abs=1e-6)
    whole_crops = indices.view(kept, 3)
    assert (whole_crops % 3 == torch.arange(3)).all()
    assert len(whole_crops[:, 0].unique()) == kept


def test_stochastic_depth_equals_the_formula(tiny_config):
    """Crop by crop: x + (n / s) * branch(x) for kept crops, x for the others, with the draws replayed."""
    tiny_config.drop_path_rate, tiny_config.num_hidden_layers = 0.5, 1
    layer = DINOv2Model(tiny_config).train().encoder.layer[0]
    crops = [torch.randn(4, 5, 32), torch.randn(6, 3, 32)]
    packed, packing = pack_crops(crops)
    torch.manual_seed(5)
    result = unpack_crops(layer(packed, packing), packing)
    torch.manual_seed(5)
    expected = [crop.clone() for crop in crops]
    branches = (
        lambda x: layer.layer_scale1(layer.attention(layer.norm1(x))),
        lambda x: layer.layer_scale2(layer.mlp(layer.norm2(x))),
    )
    for branch in branches:
        for group in expected:
            keep = len(group) // 2
            for crop in torch.randperm(len(group))[:keep]:
                group[crop] = group[crop] + len(group) / keep * branch(group[crop][None])[0].detach()
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
