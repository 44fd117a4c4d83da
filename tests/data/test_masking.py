import math
import random

import numpy as np
import pytest
import torch

from dinov2_hf.data.masking import BlockMaskGenerator, draw_masks, reference_max_num_patches


@pytest.fixture
def generator() -> BlockMaskGenerator:
    return BlockMaskGenerator(16, max_num_patches=128)


@pytest.mark.parametrize(("seed", "index_sum"), [(0, 14609), (1, 14345), (2, 12940), (3, 16829)])
def test_masks_of_the_original_are_repeated(generator, seed, index_sum):
    mask = generator(100, random.Random(seed))
    assert mask.shape == (16, 16)
    assert mask.dtype == bool
    assert mask.sum() == 100
    assert np.flatnonzero(mask).sum() == index_sum
    if seed == 0:
        assert mask.sum(axis=1).tolist() == [0, 0, 0, 7, 7, 7, 9, 10, 8, 8, 8, 8, 7, 7, 7, 7]


def test_batch_of_the_original_is_repeated(generator):
    masks, upper_bound = draw_masks(8, generator, rng=random.Random(0))
    indices = masks.flatten().nonzero().squeeze(1)
    assert masks.shape == (8, 256)
    assert masks.dtype == torch.bool
    assert masks.sum(dim=1).tolist() == [97, 113, 0, 0, 76, 0, 0, 47]
    assert upper_bound == 357
    assert indices.sum() == 228590
    assert indices[:10].tolist() == [17, 18, 19, 20, 21, 22, 24, 25, 26, 33]


@pytest.mark.parametrize(("num_crops", "upper_bound"), [(128, 4941), (64, 2496), (24, 967), (8, 357)])
def test_upper_bounds_of_the_original(generator, num_crops, upper_bound):
    masks, bound = draw_masks(num_crops, generator, rng=random.Random(7))
    assert bound == upper_bound
    assert 0.8 * bound < masks.sum() <= bound


@pytest.mark.parametrize(
    ("image_size", "patch_size", "expected"),
    [(224, 14, 128), (224, 16, 98), (512, 16, 512), (392, 14, 392), (518, 14, 666)],
)
def test_reference_max_num_patches(image_size, patch_size, expected):
    assert reference_max_num_patches(image_size, patch_size) == expected


def test_the_target_is_never_exceeded_and_rarely_missed(generator):
    rng = random.Random(0)
    counts = np.array([generator(75, rng).sum() for _ in range(300)])
    assert counts.max() == 75
    assert counts.mean() > 74.5


def test_grids_need_not_be_square():
    mask = BlockMaskGenerator((4, 12))(20, random.Random(0))
    assert mask.shape == (4, 12)
    assert 0 < mask.sum() <= 20


def test_no_rectangle_spans_the_grid():
    generator = BlockMaskGenerator(6, max_num_patches=36)
    rng = random.Random(0)
    for _ in range(200):
        mask = np.zeros((6, 6), dtype=bool)
        generator._add_rectangle(mask, 36, rng)
        assert not mask.all(axis=0).any()
        assert not mask.all(axis=1).any()


def test_no_masks_without_probability(generator):
    masks, upper_bound = draw_masks(6, generator, mask_probability=0.0, rng=random.Random(0))
    assert masks.shape == (6, 256)
    assert not masks.any()
    assert upper_bound == 0


def test_a_fixed_share_of_crops_is_masked(generator):
    masks, _ = draw_masks(10, generator, mask_probability=0.35, mask_ratio=(0.2, 0.2), rng=random.Random(0))
    counts = masks.sum(dim=1)
    assert (counts > 0).sum() == math.floor(10 * 0.35)
    assert counts.max() <= int(256 * 0.2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("grid_size", {"grid_size": (0, 4)}),
        ("min_num_patches", {"grid_size": 4, "min_num_patches": 0}),
        ("max_num_patches", {"grid_size": 4, "max_num_patches": 3}),
        ("aspect_ratio", {"grid_size": 4, "aspect_ratio": (2.0, 1.0)}),
    ],
)
def test_impossible_generators_are_refused(name, arguments):
    with pytest.raises(ValueError, match=name):
        BlockMaskGenerator(**arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mask_probability", {"mask_probability": 1.1}),
        ("mask_ratio", {"mask_ratio": (0.5, 0.1)}),
        ("mask_ratio", {"mask_ratio": (0.1, 1.5)}),
    ],
)
def test_impossible_ratios_are_refused(generator, name, arguments):
    with pytest.raises(ValueError, match=name):
        draw_masks(4, generator, rng=random.Random(0), **arguments)
