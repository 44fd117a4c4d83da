"""Pruning of clusters, against loops, a general solver of the paper's program, and what is known beforehand."""

import numpy as np
import pytest
from scipy.optimize import minimize

from dinov2_hf.curation.algorithms.clustering import ClusterMembers, assign_clusters
from dinov2_hf.curation.algorithms.pruning import (
    concept_complexity,
    counts_by_complexity,
    effective_number,
    least_typical,
    semantic_duplicates,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from tests.curation.algorithms.synthetic import at_angles, clustered_vectors, unit


@pytest.fixture
def clustered():
    rows, _ = clustered_vectors(300, 8, num_clusters=6, noise=0.5)
    vectors = ArrayEmbeddings(rows)
    centroids = unit(np.random.default_rng(1).normal(size=(6, 8))).astype(np.float32)
    clusters, typical = assign_clusters(vectors, centroids)
    return vectors, centroids, ClusterMembers(clusters, 6), typical, clusters


def test_of_what_means_the_same_the_least_typical_stays():
    """Two clusters of angles; 0, 4 and 8 degrees are within 5 of the next, and so are 90 and 92."""
    vectors = ArrayEmbeddings(at_angles([0, 4, 8, 40, 90, 92]))
    members = ClusterMembers(np.array([0, 0, 0, 0, 1, 1]), 2)
    typical = np.array([0.5, 0.6, 0.7, 0.9, 0.8, 0.7])
    found = semantic_duplicates(vectors, members, typical, float(np.cos(np.radians(5))))
    # 0 stays, 4 goes for it, 8 is 8 from 0 and stays; 92 is less typical than 90.
    assert found.dropped.tolist() == [1, 4]
    assert found.duplicate_of.tolist() == [0, 5]
    np.testing.assert_allclose(found.nearest[[1, 2, 3]], np.cos(np.radians([4, 8, 32])), rtol=1e-5)
    assert np.isneginf(found.nearest[[0, 5]]).all()


def test_complexity_is_the_formula_of_the_paper(clustered):
    vectors, centroids, members, _, clusters = clustered
    typical = np.array([vectors.vectors[row] @ centroids[clusters[row]] for row in range(300)])
    found = concept_complexity(centroids, members, typical)
    for cluster in range(6):
        others = sorted(1 - centroids[cluster] @ centroids[other] for other in range(6) if other != cluster)
        inside = [1 - typical[row] for row in range(300) if clusters[row] == cluster]
        expected = np.mean(others[:20]) * (np.mean(inside) if inside else 0)
        assert found[cluster] == pytest.approx(expected, rel=1e-4)


def test_counts_solve_the_quadratic_program():
    complexity = np.array([0.9, 0.7, 0.3, 0.25, 0.1])
    sizes, total = np.array([30, 100, 60, 0, 90]), 150
    weights = np.exp(complexity / 0.2) * (sizes > 0)
    wanted = total * weights / weights.sum()
    solved = minimize(
        lambda x: ((x - wanted) ** 2).sum(), np.minimum(sizes, total / 4), method="SLSQP", tol=1e-12,
        bounds=[(min(1, size), size) for size in sizes], constraints={"type": "eq", "fun": lambda x: x.sum() - total},
    ).x  # fmt: skip
    found = counts_by_complexity(complexity, sizes, total, 0.2)
    assert found.sum() == total
    assert np.abs(found - solved).max() <= 1
    assert found[0] == 30  # all it has
    assert found[3] == 0


@pytest.mark.parametrize("total", [4, 57, 280])
def test_counts_at_the_ends(total):
    sizes = np.array([30, 100, 60, 90])
    found = counts_by_complexity(np.array([5.0, 0.1, 0.1, 0.1]), sizes, total, 0.01)
    assert found.sum() == total
    assert (found >= 1).all()
    assert (found <= sizes).all()


def test_the_least_typical_stay(clustered):
    _, _, members, typical, clusters = clustered
    counts = np.minimum(members.sizes, 3)
    kept = least_typical(members, typical, counts)
    for cluster in range(6):
        inside = np.flatnonzero(clusters == cluster)
        expected = inside[np.argsort(typical[inside])[:3]]
        assert set(kept[np.isin(kept, inside)]) == set(expected)


def test_the_effective_number_of_clusters():
    assert effective_number(np.array([7, 7, 7, 0])) == pytest.approx(3)
    assert effective_number(np.array([9, 0])) == pytest.approx(1)
    share = np.array([0.9, 0.1])
    assert effective_number(np.array([9, 1])) == pytest.approx(np.prod(share**-share))
    assert effective_number(np.zeros(3)) == 0
