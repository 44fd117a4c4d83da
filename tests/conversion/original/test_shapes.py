"""Configurations from shapes: the released networks, with the parameter counts of the specification."""

import math

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.conversion.original.names import projection_head_from_original
from dinov2_hf.conversion.original.shapes import backbone_config, check_tensors, pretraining_config, with_layer_scale
from tests.conversion.original.layouts import backbone_shapes, fill, projection_head_shapes


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# hidden size, blocks, heads, SwiGLU width, parameters for images of 518 pixels
RELEASED = {
    "ViT-S/14": (384, 12, 6, None, 22_056_576),
    "ViT-B/14": (768, 12, 12, None, 86_580_480),
    "ViT-L/14": (1024, 24, 16, None, 304_368_640),
    "ViT-g/14": (1536, 40, 24, 4096, 1_136_480_768),
}


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("name", RELEASED)
def test_released_sizes(name, num_registers):
    width, depth, heads, swiglu_width, num_parameters = RELEASED[name]
    shapes = backbone_shapes(width, depth, swiglu_width=swiglu_width, num_registers=num_registers, grid_size=37)
    assert sum(math.prod(shape) for shape in shapes.values()) == num_parameters + num_registers * width
    assert depth != 12 or len(shapes) == 175 + (num_registers > 0)
    expected = DINOv2Config(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        use_swiglu_ffn=swiglu_width is not None,
        image_size=518,
        patch_size=14,
        num_register_tokens=num_registers,
        interpolate_offset=0.0 if num_registers else 0.1,
        interpolate_antialias=num_registers > 0,
    )
    assert backbone_config(on_meta(shapes))[0].to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("shapes", "fields"),
    [
        ({"patch_size": 16, "grid_size": 14}, {"patch_size": 16, "image_size": 224}),
        ({"num_channels": 8}, {"num_channels": 8}),
        ({"mlp_width": 100}, {"mlp_ratio": 100 / 64}),
        ({"swiglu_width": 48}, {"mlp_ratio": 1.125, "use_swiglu_ffn": True}),
        ({"qkv_bias": False}, {"qkv_bias": False}),
        ({"layer_scale": False}, {"layerscale_value": 1.0}),
    ],
)
def test_what_else_shapes_tell(shapes, fields):
    config = backbone_config(fill(backbone_shapes(hidden_size=64, **shapes)))[0]
    assert {name: getattr(config, name) for name in fields} == fields


@pytest.mark.parametrize("width", range(1, 400, 7))
def test_every_hidden_width_of_an_mlp_has_a_ratio(width):
    config = backbone_config(on_meta(backbone_shapes(hidden_size=192, depth=1, mlp_width=width)))[0]
    assert int(192 * config.mlp_ratio) == width


@pytest.mark.parametrize("width", range(8, 700, 24))
def test_every_multiple_of_8_has_a_swiglu_ratio(width):
    config = backbone_config(on_meta(backbone_shapes(hidden_size=192, depth=1, swiglu_width=width)))[0]
    with torch.device("meta"):
        assert DINOv2Model(config).encoder.layer[0].mlp.weights_out.in_features == width


def test_given_values_win():
    state = fill(backbone_shapes(num_registers=4))
    config = backbone_config(state, num_attention_heads=4, interpolate_offset=0.1, interpolate_antialias=False)[0]
    assert (config.num_attention_heads, config.interpolate_offset, config.interpolate_antialias) == (4, 0.1, False)


def test_layer_scale_of_ones_where_there_is_none():
    state = fill(backbone_shapes(layer_scale=False))
    added = {name: tensor for name, tensor in with_layer_scale(state).items() if name not in state}
    assert sorted(added) == sorted(f"blocks.{block}.ls{branch}.gamma" for block in range(3) for branch in (1, 2))
    assert all(torch.equal(tensor, torch.ones(32)) for tensor in added.values())
    assert with_layer_scale(fill(backbone_shapes())).keys() == backbone_shapes().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.proj.bias": None}, r"of 49 tensors expected, `blocks\.1\.attn\.proj\.bias` missing\."),
        ({"head.weight": (3, 64)}, r"`head\.weight` unexpected\."),
        ({"blocks.1.ls1.gamma": None}, r"`blocks\.1\.ls1\.gamma` missing"),
        ({"blocks.2.norm1.bias": (63,)}, r"`blocks\.2\.norm1\.bias` has shape \(63,\), but \(64,\) is expected"),
        ({"pos_embed": (1, 4, 64)}, r"`pos_embed` holds 4 positions, but 1 and those of a square grid"),
        ({"pos_embed": (1, 1, 64)}, r"`pos_embed` holds 1 positions"),
        ({"pos_embed": (5, 64)}, r"`pos_embed` has shape \(5, 64\), but 3 dimensions"),
        ({"cls_token": (1, 1, 48)}, r"`cls_token` has 48 channels, .* --num_attention_heads"),
        ({"blocks.0.mlp.fc2.weight": None}, r"`blocks\.0\.mlp\.fc2\.weight` is missing"),
        ({"patch_embed.proj.weight": (64, 3, 14, 7)}, r"`patch_embed\.proj\.weight` has shape \(64, 3, 14, 7\), but"),
    ],
)
def test_shapes_that_are_no_network(change, message):
    shapes = backbone_shapes(hidden_size=64) | change
    state = fill({name: shape for name, shape in shapes.items() if shape is not None})
    with pytest.raises(ValueError, match=message):
        backbone_config(state)[0]


def test_a_swiglu_width_that_no_ratio_makes():
    with pytest.raises(ValueError, match=r"`blocks\.0\.mlp\.w3\.weight` reads 50 channels.*multiple of 8"):
        backbone_config(fill(backbone_shapes(hidden_size=64, swiglu_width=50)))[0]


def test_long_lists_are_shortened():
    expected = {f"layer.{index}": (1,) for index in range(9)}
    with pytest.raises(ValueError, match=r"of 9 tensors expected, `layer\.0`, `layer\.1`, `layer\.2` and 6 more miss"):
        check_tensors({}, expected)


def heads(**shapes):
    return {
        name: projection_head_from_original(fill(projection_head_shapes(32, *shape))) for name, shape in shapes.items()
    }


def test_sizes_of_projection_heads():
    config = pretraining_config(DINOv2Config(hidden_size=32, num_attention_heads=2), heads(dino_head=(24, 8, 20, 3)))
    fields = ("num_prototypes", "bottleneck_size", "head_hidden_size", "head_num_layers", "separate_ibot_head")
    assert tuple(getattr(config, name) for name in fields) == (24, 8, 20, 3, False)
    assert config.backbone_config.hidden_size == 32
    both = heads(dino_head=(24, 8, 20, 2), ibot_head=(16, 6, 20, 2))
    config = pretraining_config(DINOv2Config(hidden_size=32, num_attention_heads=2), both)
    assert (config.separate_ibot_head, config.ibot_num_prototypes, config.ibot_bottleneck_size) == (True, 16, 6)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (heads(ibot_head=(16, 6, 20, 2)), "`ibot_head` without a `dino_head`"),
        (
            heads(dino_head=(24, 8, 20, 3), ibot_head=(16, 6, 20, 2)),
            "`head_num_layers` is 3 in `dino_head` and 2 in `ibot_head`",
        ),
        (
            heads(dino_head=(24, 8, 20, 3), ibot_head=(16, 6, 21, 3)),
            "`head_hidden_size` is 20 in `dino_head` and 21 in `ibot_head`",
        ),
        ({"dino_head": {"last_layer.weight_v": torch.zeros(24, 8)}}, r"in `dino_head`, of 4 tensors expected, `last"),
    ],
)
def test_heads_that_are_none_of_one_model(found, message):
    with pytest.raises(ValueError, match=message):
        pretraining_config(DINOv2Config(hidden_size=32, num_attention_heads=2), found)
