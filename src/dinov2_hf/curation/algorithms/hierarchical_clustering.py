"""Hierarchical k-means with resampling, and balanced sampling from it: curation without a curated set.

It follows the text of Vo et al. 2024, "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based
Approach". Plain k-means spends its centroids where data is dense. Here the centroids are clustered again, level by
level, and each level is learned from the same number of rows of every cluster. This spreads the centroids evenly over
the data, so a sample that draws evenly from the top downwards is balanced over concepts.

One thing differs: similarity is the cosine here, and Euclidean in the k-means of the paper.

Shapes: `n` rows, `K_t` clusters of level t, levels from 1 (rows into `K_1`) to T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .clustering import ClusterMembers, assign_together, spherical_kmeans
from .unit_vectors import ArrayEmbeddings, ChosenRows, UnitVectors


@dataclass(frozen=True)
class Hierarchy:
    """A tree of clusters over the rows of a pool.

    Attributes:
        centroids: for each level, (K_t, D) float32 of unit length.
        parents: for each level, the cluster of each of its inputs: (n,) for rows, then (K_1,), (K_2,), ... int64.
    """

    centroids: list[np.ndarray]
    parents: list[np.ndarray]

    def clusters(self, level: int) -> np.ndarray:
        """(n,) the cluster of each row at a level, from 1."""
        found = self.parents[0]
        for parents in self.parents[1:level]:
            found = parents[found]
        return found

    def sizes(self, level: int) -> np.ndarray:
        """(K_t,) rows of the pool below each cluster of a level, from 1."""
        return np.bincount(self.clusters(level), minlength=len(self.centroids[level - 1]))


def hierarchical_kmeans(
    vectors: UnitVectors,
    num_clusters: Sequence[int],
    *,
    num_resamplings: int = 10,
    resampled_rows: int = 20,
    num_iterations: int = 20,
    training_rows: int | None = None,
    seed: int = 0,
    gpus: Sequence[int] = (),
    progress: bool = False,
) -> Hierarchy:
    """Cluster rows, then the centroids of the rows' clusters, and so on.

    Args:
        vectors: the pool.
        num_clusters: of each level, falling.
        num_resamplings: how many times each level is learned again from the rows nearest to its centroids; 0: plain
            k-means at every level.
        resampled_rows: the number of nearest rows of each cluster that it is learned from; all of a smaller cluster.
        num_iterations, training_rows, gpus: of `spherical_kmeans`; the sample is for level 1 only.
        seed: of all choices.

    Raises:
        ValueError: levels do not fall, there are more clusters than rows, or a count is out of range.
    """
    if not num_clusters or any(after >= before for before, after in zip(num_clusters, num_clusters[1:], strict=False)):
        raise ValueError(f"num_clusters={list(num_clusters)} must be one or more falling numbers, one for each level.")
    if num_resamplings < 0 or resampled_rows < 1:
        raise ValueError(
            f"num_resamplings={num_resamplings} must be at least 0 and resampled_rows={resampled_rows} at least 1."
        )
    centroids, parents = [], []
    inputs = vectors
    for level, count in enumerate(num_clusters):
        where: dict[str, Any] = {"gpus": gpus, "progress": progress}
        options = {"num_iterations": num_iterations, **where}
        sample = training_rows if level == 0 else None
        found = spherical_kmeans(inputs, count, training_rows=sample, seed=seed, **options)
        assigned, cosines = assign_together(inputs, found.centroids, **where)
        for step in range(num_resamplings):
            nearest = _nearest_of_each(assigned, cosines, count, resampled_rows)
            # If clusters are tiny there may be too few rows for another round.
            if len(nearest) < count:
                break
            found = spherical_kmeans(ChosenRows(inputs, nearest), count, seed=seed + step + 1, **options)
            assigned, cosines = assign_together(inputs, found.centroids, **where)
        centroids.append(found.centroids)
        parents.append(assigned)
        inputs = ArrayEmbeddings(found.centroids)
    return Hierarchy(centroids, parents)


def _nearest_of_each(clusters: np.ndarray, similarities: np.ndarray, num_clusters: int, most: int) -> np.ndarray:
    """The rows of each cluster that are nearest to its centroid, `most` at most, in rising order of rows."""
    order = np.lexsort((-similarities, clusters))
    begins = np.searchsorted(clusters[order], np.arange(num_clusters))
    place = np.arange(len(order)) - begins[clusters[order]]
    return np.sort(order[place < most])


def balanced_counts(capacities: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """Share a number between clusters as evenly as their sizes allow.

    Every cluster gets the same count c, or all of its rows if it has fewer. c is the largest number for which the sum
    is at most `total`. The rest goes to clusters that have more rows, one for each cluster that is drawn.

    Args:
        capacities: rows of each cluster.
        total: the number to share; all rows if there are not as many.

    Returns:
        int64 counts with the sum min(total, capacities.sum()).
    """
    capacities = np.asarray(capacities, dtype=np.int64)
    total = min(int(total), int(capacities.sum()))
    if total == 0:
        return np.zeros_like(capacities)
    low, high = 0, int(capacities.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(capacities, middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    counts = np.minimum(capacities, low)
    roomy = np.flatnonzero(capacities > low)
    counts[generator.choice(roomy, total - counts.sum(), replace=False)] += 1
    return counts


def balanced_sample(hierarchy: Hierarchy, num_rows: int, *, seed: int = 0) -> np.ndarray:
    """Rows of the pool, drawn evenly over the clusters of the top level, then over the clusters in each, and so on.

    Args:
        hierarchy: from `hierarchical_kmeans`.
        num_rows: how many to draw; all if the pool has fewer.
        seed: of all draws.

    Returns:
        Unique int64 rows in rising order.

    Raises:
        ValueError: `num_rows` is below 1.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows={num_rows} must be at least 1.")
    generator = np.random.default_rng(seed)
    top = len(hierarchy.centroids)
    counts = balanced_counts(hierarchy.sizes(top), num_rows, generator)
    for level in range(top - 1, 0, -1):
        sizes = hierarchy.sizes(level)
        children = ClusterMembers(hierarchy.parents[level], len(counts))
        below = np.zeros(len(sizes), np.int64)
        for cluster in np.flatnonzero(counts):
            inside = children[cluster]
            below[inside] = balanced_counts(sizes[inside], counts[cluster], generator)
        counts = below
    members = ClusterMembers(hierarchy.parents[0], len(counts))
    drawn = [generator.choice(members[cluster], counts[cluster], replace=False) for cluster in np.flatnonzero(counts)]
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)
