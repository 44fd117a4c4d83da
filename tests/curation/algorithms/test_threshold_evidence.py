"""What speaks for a threshold: counted one by one, and expected from vectors whose distribution is known."""

import math

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.deduplication import Edges, deduplicate
from dinov2_hf.curation.algorithms.threshold_evidence import (
    copies_at,
    each_pair_once,
    other_thresholds,
    pairs_beside,
    threshold_table,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from dinov2_hf.curation.algorithms.unlike_pairs import sample_unlike_pairs


def all_edges(vectors: np.ndarray) -> Edges:
    cosines = vectors @ vectors.T
    rows, others = np.nonzero(~np.eye(len(vectors), dtype=bool))
    return Edges(rows, others, cosines[rows, others].astype(np.float32))


def random_unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_as_many_would_go_as_a_deduplication_at_that_threshold_drops():
    vectors = random_unit(60, 5)
    edges = all_edges(vectors)
    for threshold in other_thresholds(0.6):
        found = deduplicate(ArrayEmbeddings(vectors), edges, threshold=threshold)
        assert copies_at(edges, threshold) == len(found.dropped)
    assert copies_at(Edges.joined([]), 0.6) == 0


def test_thresholds_around_one():
    assert other_thresholds(0.6) == [0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]
    assert other_thresholds(0.95) == [0.8, 0.85, 0.9, 0.95]


def test_pairs_beside_a_threshold_are_the_nearest_and_each_is_there_once():
    vectors = random_unit(40, 5)
    found = pairs_beside(each_pair_once(all_edges(vectors)), 0.6)
    cosines = np.sort((vectors @ vectors.T)[np.triu_indices(40, 1)])
    np.testing.assert_allclose(found["above"].similarities, cosines[cosines > 0.6][:6], rtol=1e-5)
    np.testing.assert_allclose(found["below"].similarities, cosines[cosines <= 0.6][:-7:-1], rtol=1e-5)


def test_the_tail_of_random_directions_is_carried_on():
    """Of 3,000 random directions in 24 dimensions, learned from 1,000 and counted among all."""
    vectors = random_unit(3000, 24)
    unlike = sample_unlike_pairs(ArrayEmbeddings(vectors))
    cosines = (vectors @ vectors.T)[np.triu_indices(3000, 1)]
    for threshold in (0.0, 0.3, 0.5):
        assert unlike.share_above(threshold) == pytest.approx(np.mean(cosines > threshold), rel=0.05)
    for threshold in (0.6, 0.65):  # no cosine exceeds 1, so their tail ends sooner than an exponential
        assert 1 < unlike.share_above(threshold) / np.mean(cosines > threshold) < 6


def test_copies_hardly_move_it():
    """A tenth of the pool are copies: 100 pairs of cosine 1 among 1,100 images, none of them unlike."""
    vectors = random_unit(1000, 64)
    alone = sample_unlike_pairs(ArrayEmbeddings(vectors))
    with_copies = sample_unlike_pairs(ArrayEmbeddings(np.concatenate([vectors, vectors[:100]])))
    assert with_copies.share_above(0.6) < 5 * alone.share_above(0.6)
    assert with_copies.share_above(0.6) < 0.05 * 100 / (1100 * 1099 / 2)


def test_of_few_images_nothing_is_expected():
    vectors = ArrayEmbeddings(random_unit(20, 8))
    assert sample_unlike_pairs(vectors) is None
    assert threshold_table([0.5], [3], None, 20, 19) == [{"threshold": 0.5, "images_dropped": 3}]
    assert sample_unlike_pairs(vectors, ArrayEmbeddings(random_unit(10, 8, seed=1))).num_pairs == 200


def test_a_pool_of_equal_vectors():
    unlike = sample_unlike_pairs(ArrayEmbeddings(np.ones((30, 4))))
    assert math.isfinite(unlike.share_above(0.6))
