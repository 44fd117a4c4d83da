"""What to keep of each cluster of a pool: one of those that mean the same, or more of a concept that is less simple.

It follows the papers on SemDeDup (Abbas et al. 2023, arXiv 2303.09540) and density-based pruning (Abbas et al. 2024,
"Effective pruning of web-scale datasets based on complexity of concept clusters", arXiv 2401.04578, tables 4 and 5).

In the paper on density-based pruning, clusters get shares by d_inter * d_intra, and the least typical images of a
cluster stay. It takes 500 clusters for 280 million images and 100 for 120 million, and keeps 60 %, 40 % or 28 % of
LAION. `NEAREST_CENTROIDS` and the defaults of `temperature`, `keep` and the number of clusters are our choice.

Distances are 1 - cosine. Shapes: `n` rows, `K` clusters, `D` width.
"""

from dataclasses import dataclass

import numpy as np

from .clustering import ClusterMembers
from .unit_vectors import UnitVectors


NEAREST_CENTROIDS = 20  # their mean distance tells the density around a cluster


@dataclass(frozen=True)
class SemanticDuplicates:
    """Rows that mean the same as another row.

    Attributes:
        dropped: (d,) rows.
        duplicate_of: (d,) the most similar row that stays in their cluster.
        nearest: (n,) float32 cosine between each row and the most similar row before it that stays; -inf for the
            first.
    """

    dropped: np.ndarray
    duplicate_of: np.ndarray
    nearest: np.ndarray


def semantic_duplicates(
    vectors: UnitVectors, members: ClusterMembers, typical: np.ndarray, threshold: float
) -> SemanticDuplicates:
    """Keep the least typical of those rows of a cluster whose cosine exceeds the threshold.

    Args:
        vectors: the pool.
        members: rows of each cluster.
        typical: (n,) cosine between each row and its centroid.
        threshold: 1 - epsilon of the paper.
    """
    dropped, duplicate_of = [], []
    nearest = np.full(len(typical), -np.inf, np.float32)
    for cluster in range(len(members)):
        rows = members[cluster]
        rows = rows[np.lexsort((rows, typical[rows]))]
        found = vectors.take(rows)
        stays: list[int] = []
        for place, row in enumerate(rows):
            if stays:
                cosines = found[stays] @ found[place]
                best = int(cosines.argmax())
                nearest[row] = cosines[best]
                if cosines[best] > threshold:
                    dropped.append(row)
                    duplicate_of.append(rows[stays[best]])
                    continue
            stays.append(place)
    return SemanticDuplicates(np.array(dropped, np.int64), np.array(duplicate_of, np.int64), nearest)


def concept_complexity(centroids: np.ndarray, members: ClusterMembers, typical: np.ndarray) -> np.ndarray:
    """(K,) d_inter * d_intra: how far a cluster is from its neighbours, times how far its rows are from its centroid.

    d_inter is the mean over the `NEAREST_CENTROIDS` nearest other centroids; the product of an empty cluster is 0.
    """
    distances = 1 - centroids @ centroids.T
    np.fill_diagonal(distances, np.inf)
    count = min(NEAREST_CENTROIDS, len(centroids) - 1)
    inter = np.sort(distances, axis=1)[:, :count].mean(axis=1) if count else np.ones(len(centroids))
    sums = np.array([(1 - typical[members[cluster]]).sum() for cluster in range(len(members))])
    return inter * sums / np.maximum(members.sizes, 1)


def counts_by_complexity(complexity: np.ndarray, sizes: np.ndarray, total: int, temperature: float) -> np.ndarray:
    """How many rows of each cluster stay: near to softmax(complexity / temperature) * total, and no more than it has.

    This is the paper's quadratic program: it finds the counts x with sum `total` and min(1, size) <= x <= size that
    are nearest to that. Its solution moves all counts by one number and clips them. Here they are then rounded, those
    with the largest remainders up.

    Args:
        complexity: (K,) from `concept_complexity`.
        sizes: (K,) rows.
        total: at least the number of clusters that are not empty, at most all rows.
        temperature: above 0; a higher one makes the counts more even.
    """
    weights = np.exp((complexity - complexity.max()) / temperature) * (sizes > 0)
    wanted, low = total * weights / weights.sum(), np.minimum(1, sizes)

    def moved(by: float) -> np.ndarray:
        return np.clip(wanted + by, low, sizes)

    down, up = -float(wanted.max()) - 1, float(sizes.max()) + 1
    for _ in range(200):  # halves until doubles are equal
        middle = (down + up) / 2
        down, up = (middle, up) if moved(middle).sum() < total else (down, middle)
    exact = moved(up)
    counts = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.where(counts < sizes, exact - counts, -1.0)
    counts[np.argsort(-rest, kind="stable")[: total - counts.sum()]] += 1
    return counts


def least_typical(members: ClusterMembers, typical: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The `counts` rows of each cluster that are farthest from its centroid, in rising order."""
    kept = [np.empty(0, np.int64)]
    for cluster in np.flatnonzero(counts):
        rows = members[cluster]
        kept.append(rows[np.lexsort((rows, typical[rows]))[: counts[cluster]]])
    return np.sort(np.concatenate(kept))


def effective_number(counts: np.ndarray) -> float:
    """How many equally large clusters have the entropy of these: exp(-sum p log p); 0 if there are no rows."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum())) if len(share) else 0.0
