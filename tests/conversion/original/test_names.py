"""Names of the original beside ours: another map, and chunks counted by hand."""

import pytest
import torch

from dinov2_hf import DINOv2Config, DINOv2Model
from dinov2_hf.conversion.original.names import (
    backbone_from_original,
    backbone_to_original,
    chunk_blocks,
    projection_head_from_original,
    projection_head_to_original,
    unchunk_blocks,
)
from tests.conversion.original.layouts import assert_holds, assert_same, backbone_shapes, fill, projection_head_shapes


VARIANTS = {
    "plain": ({}, {}),
    "registers": ({"num_registers": 4}, {"num_register_tokens": 4}),
    "swiglu": ({"swiglu_width": 88}, {"use_swiglu_ffn": True}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_names_hold_the_original_tensors_by_another_map(variant):
    shapes, fields = VARIANTS[variant]
    state = fill(backbone_shapes(**shapes))
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14, **fields
    )
    model = DINOv2Model(config)
    model.load_state_dict(backbone_from_original(state))
    assert_holds(model, state)
    assert_same(backbone_to_original(model.state_dict()), state)


def test_parts_of_qkv_do_not_share_memory():
    converted = backbone_from_original(fill(backbone_shapes(depth=1)))
    starts = {tensor.untyped_storage().data_ptr() for tensor in converted.values()}
    assert len(starts) == len(converted)


def chunks_of(depth, block_chunks):
    names = chunk_blocks({f"blocks.{block}.norm1.weight": torch.zeros(1) for block in range(depth)}, block_chunks)
    return [name.removeprefix("blocks.").removesuffix(".norm1.weight") for name in names]


def test_chunks_keep_the_number_of_the_block():
    assert chunks_of(4, 0) == ["0", "1", "2", "3"]
    assert chunks_of(4, 1) == ["0.0", "0.1", "0.2", "0.3"]
    assert chunks_of(4, 2) == ["0.0", "0.1", "1.2", "1.3"]
    assert chunks_of(24, 4)[11] == "1.11"


def test_more_chunks_than_asked_for_where_they_do_not_divide_the_blocks():
    assert chunks_of(5, 2) == ["0.0", "0.1", "1.2", "1.3", "2.4"]


@pytest.mark.parametrize("block_chunks", [1, 2, 3])
def test_unchunking_undoes_chunking(block_chunks):
    state = fill(backbone_shapes(depth=3))
    chunked = chunk_blocks(state, block_chunks)
    assert chunked.keys() != state.keys()
    assert_same(unchunk_blocks(chunked), state)


@pytest.mark.parametrize("block_chunks", [-1, 4])
def test_impossible_chunks_are_refused(block_chunks):
    with pytest.raises(ValueError, match=f"--block_chunks is {block_chunks}; it must be from 0 .* to 3"):
        chunk_blocks(fill(backbone_shapes(depth=3)), block_chunks)


def test_a_block_in_two_chunks_is_refused():
    state = {"blocks.0.1.norm1.weight": torch.zeros(1), "blocks.1.1.norm1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"two chunks of blocks hold `blocks\.1\.norm1\.weight`"):
        unchunk_blocks(state)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_projection_heads_both_ways(num_layers):
    state = fill(projection_head_shapes(32, 24, 8, 20, num_layers))
    ours = projection_head_from_original(state)
    numbered = [name for name in ours if name.startswith("mlp.") and name.endswith("weight")]
    assert numbered == [f"mlp.{2 * layer}.weight" for layer in range(num_layers)]
    assert_same(projection_head_to_original(ours), state)
