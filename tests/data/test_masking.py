import math
import random

import numpy as np
import pytest
import torch

from dinov2_hf.data.masking import add_rectangle, block_mask, draw_masks, largest_area, most_masked


@pytest.mark.parametrize(("seed", "index_sum"), [(0, 14609), (1, 14345), (2, 12940), (3, 16829)])
def test_masks_of_the_original_are_repeated(seed, index_sum):
    mask = block_mask((16, 16), 100, random.Random(seed))
    assert mask.shape == (16, 16)
    assert mask.dtype == bool
    assert mask.sum() == 100
    assert np.flatnonzero(mask).sum() == index_sum
    if seed == 0:
        assert mask.sum(axis=1).tolist() == [0, 0, 0, 7, 7, 7, 9, 10, 8, 8, 8, 8, 7, 7, 7, 7]


def test_batch_of_the_original_is_repeated():
    masks = draw_masks(8, (16, 16), rng=random.Random(0))
    indices = masks.flatten().nonzero().squeeze(1)
    assert masks.shape == (8, 256)
    assert masks.dtype == torch.bool
    assert masks.sum(dim=1).tolist() == [97, 113, 0, 0, 76, 0, 0, 47]
    assert indices.sum() == 228590
    assert indices[:10].tolist() == [17, 18, 19, 20, 21, 22, 24, 25, 26, 33]


@pytest.mark.parametrize(("num_crops", "upper_bound"), [(128, 4941), (64, 2496), (24, 967), (8, 357)])
def test_upper_bounds_of_the_original(num_crops, upper_bound):
    assert most_masked(num_crops, 256) == upper_bound
    masks = draw_masks(num_crops, (16, 16), rng=random.Random(7))
    assert 0.8 * upper_bound < masks.sum() <= upper_bound


@pytest.mark.parametrize(("side", "expected"), [(16, 128), (14, 98), (32, 512), (28, 392), (37, 666)])
def test_the_largest_rectangle_is_that_of_the_original(side, expected):
    assert largest_area(side, side) == expected


def test_the_target_is_never_exceeded_and_rarely_missed():
    rng = random.Random(0)
    counts = np.array([block_mask((16, 16), 75, rng).sum() for _ in range(300)])
    assert counts.max() == 75
    assert counts.mean() > 74.5


def test_grids_need_not_be_square():
    mask = block_mask((4, 12), 20, random.Random(0))
    assert mask.shape == (4, 12)
    assert 0 < mask.sum() <= 20


def test_no_rectangle_spans_the_grid():
    rng = random.Random(0)
    for _ in range(200):
        mask = np.zeros((6, 6), dtype=bool)
        add_rectangle(mask, 36, rng)
        assert not mask.all(axis=0).any()
        assert not mask.all(axis=1).any()


def test_no_masks_without_probability():
    masks = draw_masks(6, (16, 16), mask_probability=0.0, rng=random.Random(0))
    assert masks.shape == (6, 256)
    assert not masks.any()


def test_a_fixed_share_of_crops_is_masked():
    masks = draw_masks(10, (16, 16), mask_probability=0.35, mask_ratio=(0.2, 0.2), rng=random.Random(0))
    counts = masks.sum(dim=1)
    assert (counts > 0).sum() == math.floor(10 * 0.35)
    assert counts.max() <= int(256 * 0.2)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4)), np.zeros((4, 5), dtype=bool), [True] * 16])
def test_what_is_no_mask_of_the_grid_is_refused(wrong):
    with pytest.raises(ValueError, match=r"a mask of .* has the shape .* must be bool and of the shape \(4, 4\)"):
        draw_masks(4, (4, 4), masks=lambda grid_size, num_masked, rng: wrong, rng=random.Random(0))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mask_probability", {"mask_probability": 1.1}),
        ("mask_ratio", {"mask_ratio": (0.5, 0.1)}),
        ("mask_ratio", {"mask_ratio": (0.1, 1.5)}),
    ],
)
def test_impossible_ratios_are_refused(name, arguments):
    with pytest.raises(ValueError, match=name):
        draw_masks(4, (4, 4), rng=random.Random(0), **arguments)
