"""Hashes of copies, and who stays."""

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.curation.algorithms.image_hashes import (
    content_hash,
    first_of_equal,
    first_similar_hash,
    perceptual_hash,
)
from dinov2_hf.data import decode_image
from tests.curation.scenes import encoded, scene


def test_the_first_of_equal_values():
    assert first_of_equal(np.array(["b", "a", "b", "c", "a"])).tolist() == [0, 1, 0, 3, 1]
    assert content_hash(b"x") == content_hash(b"x") != content_hash(b"y")


def test_a_perceptual_hash_survives_recompression_and_scaling():
    hashes = [perceptual_hash(scene(seed)) for seed in range(30)]
    assert len(set(map(int, hashes))) == 30
    for seed in range(30):
        small = scene(seed).resize((48, 36), Image.Resampling.LANCZOS)
        copy = decode_image(encoded(small, "JPEG", quality=70))
        assert int(hashes[seed] ^ perceptual_hash(copy)).bit_count() <= 6
    assert perceptual_hash(Image.new("RGB", (50, 40), "red")) == 0


@pytest.mark.parametrize("max_distance", [0, 1, 3, 6])
def test_similar_hashes_as_by_comparing_all(max_distance):
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 40, dtype=np.uint64)
    flips = np.zeros(200, np.uint64)
    for _ in range(5):
        flips ^= np.uint64(1) << random.integers(0, 64, 200, dtype=np.uint64)
    flips[::3] = 0
    hashes = hashes[random.integers(0, 40, 200)] ^ flips
    expected_first, expected_distance, kept = [], [], []
    for row, value in enumerate(hashes):
        near = [other for other in kept if int(value ^ hashes[other]).bit_count() <= max_distance]
        expected_first.append(near[0] if near else row)
        expected_distance.append(int(value ^ hashes[near[0]]).bit_count() if near else 0)
        if not near:
            kept.append(row)
    first, distance = first_similar_hash(hashes, max_distance)
    assert first.tolist() == expected_first
    assert distance.tolist() == expected_distance


def test_a_distance_out_of_range():
    with pytest.raises(ValueError, match="perceptual_hash_distance is 16, but must be from 0 to 15"):
        first_similar_hash(np.zeros(2, np.uint64), 16)
