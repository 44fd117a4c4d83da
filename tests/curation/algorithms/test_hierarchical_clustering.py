"""The tree of clusters and the balanced sample, against loops and counts known beforehand."""

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.hierarchical_clustering import (
    Hierarchy,
    _nearest_of_each,
    balanced_counts,
    balanced_sample,
    hierarchical_kmeans,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from tests.curation.algorithms.synthetic import clustered_vectors, unit


@pytest.fixture(scope="module")
def long_tail():
    """20 concepts of which the first has 1,000 rows and the last 10; and the concept of each row."""
    sizes = np.geomspace(1000, 10, 20).astype(int)
    generator = np.random.default_rng(0)
    centers = unit(generator.standard_normal((20, 24)))
    labels = np.repeat(np.arange(20), sizes)
    rows = unit(centers[labels] + 0.4 * generator.standard_normal((len(labels), 24)) / 24**0.5)
    return ArrayEmbeddings(rows), labels


@pytest.fixture(scope="module")
def hierarchy(long_tail):
    return hierarchical_kmeans(long_tail[0], [100, 20], num_resamplings=5, resampled_rows=5)


def test_levels_join(hierarchy, long_tail):
    vectors, _ = long_tail
    n = len(vectors)
    assert [len(each) for each in hierarchy.centroids] == [100, 20]
    assert [len(each) for each in hierarchy.parents] == [n, 100]
    for row in (0, 17, n - 1):
        first = int(np.argmax(hierarchy.centroids[0] @ vectors.vectors[row]))
        second = int(np.argmax(hierarchy.centroids[1] @ hierarchy.centroids[0][first]))
        assert hierarchy.clusters(1)[row] == first
        assert hierarchy.clusters(2)[row] == second
    for level in (1, 2):
        assert hierarchy.sizes(level).sum() == n


def test_resampling_spreads_centroids_over_what_there_is():
    """Three quarters of the points lie in a cap that is a fiftieth of the sphere: the paper's example in the plane.

    Plain k-means puts a quarter of its centroids there, resampling a few: the more rounds, the fewer.
    """
    generator = np.random.default_rng(0)
    cap = np.array([0, 0, 1]) + 0.15 * generator.standard_normal((9000, 3))
    points = ArrayEmbeddings(np.concatenate([cap, generator.standard_normal((1000, 3))]))
    assert (points.vectors[:, 2] > 0.96).mean() > 0.75
    shares = []
    for num_resamplings in (0, 1, 5):
        found = hierarchical_kmeans(
            points, [100], num_resamplings=num_resamplings, resampled_rows=10, num_iterations=10
        )
        shares.append((found.centroids[0][:, 2] > 0.96).mean())
    assert shares[0] > 0.2
    assert shares[1] < shares[0] / 2
    assert shares[2] < shares[1]


def test_a_balanced_sample_is_more_even_than_the_pool(long_tail, hierarchy):
    _, labels = long_tail
    drawn = balanced_sample(hierarchy, 400)
    assert len(np.unique(drawn)) == 400
    assert entropy(labels[drawn]) > entropy(labels) + 0.2
    np.testing.assert_array_equal(drawn, balanced_sample(hierarchy, 400))
    assert drawn.tolist() != balanced_sample(hierarchy, 400, seed=1).tolist()


def entropy(labels):
    shares = np.bincount(labels) / len(labels)
    shares = shares[shares > 0]
    return -(shares * np.log(shares)).sum()


@pytest.fixture
def small_tree():
    """Two top clusters of three and one below them: rows 0-9, 10-11, 12 under A and 13-20 under B."""
    rows = np.repeat([0, 1, 2, 3], [10, 2, 1, 8])
    return Hierarchy([np.eye(4), np.eye(4)[:2]], [rows, np.array([0, 0, 0, 1])])


def test_draws_are_even_at_every_level(small_tree):
    """12 rows: 6 of each top cluster; in A the small ones give all they have, 2 and 1, and the large the other 3."""
    drawn = balanced_sample(small_tree, 12)
    assert np.bincount(small_tree.parents[0][drawn]).tolist() == [3, 2, 1, 6]


def test_more_than_there_is_gives_all(small_tree):
    assert balanced_sample(small_tree, 1000).tolist() == list(range(21))


def test_counts_fill_like_water():
    """Against a loop that gives one at a time to the cluster that has the fewest of those with room."""
    for seed in range(30):
        generator = np.random.default_rng(seed)
        capacities = generator.integers(0, 30, size=12)
        total = int(generator.integers(0, 250))
        expected = np.zeros(12, int)
        for _ in range(min(total, capacities.sum())):
            room = np.flatnonzero(expected < capacities)
            expected[room[np.argmin(expected[room])]] += 1
        found = balanced_counts(capacities, total, generator)
        assert found.sum() == min(total, capacities.sum())
        assert (found <= capacities).all()
        # Which of the equal clusters get one more is drawn; how many have how much is not.
        np.testing.assert_array_equal(np.sort(found), np.sort(expected))


def test_the_nearest_rows_of_each_cluster():
    generator = np.random.default_rng(0)
    clusters, similarities = generator.integers(6, size=50), generator.random(50)
    clusters[clusters == 4] = 3  # an empty one
    expected = []
    for cluster in range(6):
        inside = [row for row in range(50) if clusters[row] == cluster]
        expected += sorted(inside, key=lambda row: -similarities[row])[:4]
    assert _nearest_of_each(clusters, similarities, 6, 4).tolist() == sorted(expected)


def test_one_level_is_k_means():
    vectors, labels = clustered_vectors(300, 16, num_clusters=3, noise=0.2)
    found = hierarchical_kmeans(ArrayEmbeddings(vectors), [3], num_resamplings=1, resampled_rows=10)
    assert len(set(zip(found.clusters(1).tolist(), labels.tolist(), strict=True))) == 3


def test_bad_input_is_refused(long_tail, hierarchy):
    vectors, _ = long_tail
    for levels in ([], [10, 10], [5, 10]):
        with pytest.raises(ValueError, match="falling numbers"):
            hierarchical_kmeans(vectors, levels)
    with pytest.raises(ValueError, match="num_clusters=100000 must be between"):
        hierarchical_kmeans(vectors, [100_000, 10])
    with pytest.raises(ValueError, match="resampled_rows=0"):
        hierarchical_kmeans(vectors, [10], resampled_rows=0)
    with pytest.raises(ValueError, match="num_rows=0"):
        balanced_sample(hierarchy, 0)
