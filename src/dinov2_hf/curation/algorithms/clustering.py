"""Spherical k-means over vectors that do not fit into memory, on one process or several.

Each round reads the training rows in blocks, finds the most similar centroid with faiss, and adds up the vectors of
each cluster. Under `torch.distributed` every process reads its own part and the sums are reduced over all, so all
hold the same centroids (paper, appendix A: distributed k-means of the pool into 100,000 clusters).

Shapes: `n` rows, `K` clusters, `D` width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from faiss.contrib.clustering import reassign_centroids
from sklearn.cluster import kmeans_plusplus
from torch import distributed

from ...progress import Progress
from .faiss_gpus import on_gpus
from .index_settings import IndexSettings
from .neighbors import search
from .unit_vectors import ArrayEmbeddings, UnitVectors, row_blocks, shard_range


# Beyond this number, choosing spread-out first centroids takes longer than the rounds: its cost grows with K^2.
SPREAD_CLUSTERS = 1000
_SPREAD_ROWS = 20  # for each cluster


@dataclass(frozen=True)
class KMeans:
    """Centroids and how they were found.

    Attributes:
        centroids: (K, D) float32 of unit length.
        objective: mean cosine of the training rows and their centroids, before each round; it rises.
        num_reassigned: empty clusters, over all rounds, that got half of a large one.
    """

    centroids: np.ndarray
    objective: list[float]
    num_reassigned: int


def spherical_kmeans(
    vectors: UnitVectors,
    num_clusters: int,
    *,
    num_iterations: int = 20,
    training_rows: int | None = None,
    seed: int = 0,
    gpus: Sequence[int] = (),
    progress: bool = False,
) -> KMeans:
    """Cluster by cosine: centroids are the means of their rows, brought to unit length.

    Args:
        vectors: the pool.
        num_clusters: K.
        num_iterations: rounds; 10 to 20 suffice.
        training_rows: size of the uniform sample of rows that all rounds use; None: all rows. 256 for each cluster
            are plenty.
        seed: for the sample, the first centroids (k-means++ up to `SPREAD_CLUSTERS`, random rows beyond) and the
            splits of large clusters.
        gpus: the GPUs that find the nearest centroids, from `gpus_for_faiss`.
        progress: show a bar over all rounds.

    Raises:
        ValueError: there are fewer (training) rows than clusters, or no round.
    """
    num_rows = len(vectors)
    chosen = num_rows if training_rows is None else min(training_rows, num_rows)
    if not 1 <= num_clusters <= chosen:
        raise ValueError(
            f"num_clusters={num_clusters} must be between 1 and the number of rows to learn from, {chosen}."
        )
    if num_iterations < 1:
        raise ValueError(f"num_iterations={num_iterations} must be at least 1.")
    generator = np.random.default_rng(seed)
    sample = None if chosen == num_rows else np.sort(generator.choice(num_rows, chosen, replace=False))
    centroids = _first_centroids(vectors, sample, chosen, num_clusters, generator)
    splits = np.random.RandomState(seed)  # the class that faiss expects

    part = _own_part(chosen)
    objective, num_reassigned = [], 0
    with Progress(total=num_iterations * len(part), unit="row", desc="K-means", disable=not progress) as bar:
        for _ in range(num_iterations):
            sums, counts, total = _cluster_sums(vectors, sample, part, centroids, gpus, bar)
            for values in (sums, counts, total):
                _sum_over_processes(values)
            objective.append(float(total[0] / chosen))
            # Opposite vectors may cancel. Their cluster keeps its centroid, and an empty one does until it is split.
            has_mean = np.linalg.norm(sums, axis=1) > 1e-6
            centroids[has_mean] = _unit(sums[has_mean])
            num_reassigned += reassign_centroids(counts, centroids, splits)
            centroids = _unit(centroids)
    return KMeans(centroids, objective, num_reassigned)


def _first_centroids(vectors, sample, num_rows, num_clusters, generator) -> np.ndarray:
    """Rows that are far from each other if there are few clusters, otherwise random rows."""
    is_spread = num_clusters <= SPREAD_CLUSTERS
    count = min(_SPREAD_ROWS * num_clusters, num_rows) if is_spread else num_clusters
    rows = np.sort(generator.choice(num_rows, count, replace=False))
    found = vectors.take(rows if sample is None else sample[rows])
    if is_spread:
        found, _ = kmeans_plusplus(found, num_clusters, random_state=int(generator.integers(2**31)))
    return np.ascontiguousarray(found)


def _cluster_sums(vectors, sample, part, centroids, gpus, bar) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, D) float64 sums, (K,) int64 counts and (1,) float64 sum of cosines over a range of the training rows."""
    sums = np.zeros(centroids.shape)
    counts = np.zeros(len(centroids), np.int64)
    total = np.zeros(1)
    index = faiss.IndexFlatIP(centroids.shape[1])
    index.add(centroids)
    index = on_gpus(index, gpus)
    for first, end in row_blocks(part.start, part.stop):
        block = vectors.read(first, end) if sample is None else vectors.take(sample[first:end])
        similarities, clusters = index.search(block, 1)
        clusters = clusters[:, 0]
        order = np.argsort(clusters, kind="stable")
        present, begins = np.unique(clusters[order], return_index=True)
        sums[present] += np.add.reduceat(block[order], begins, axis=0)
        counts += np.bincount(clusters, minlength=len(centroids))
        total += similarities.sum(dtype=np.float64)
        bar.update(end - first)
    return sums, counts, total


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _own_part(num_rows: int) -> range:
    """The rows that this process works on."""
    if not _is_distributed():
        return range(num_rows)
    return shard_range(num_rows, distributed.get_rank(), distributed.get_world_size())


def _sum_over_processes(values: np.ndarray) -> None:
    """Add up an array over all processes, in place."""
    if not _is_distributed():
        return
    shared = torch.from_numpy(values)
    if distributed.get_backend() == "nccl":
        on_device = shared.cuda()
        distributed.all_reduce(on_device)
        shared.copy_(on_device)
    else:
        distributed.all_reduce(shared)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def assign_clusters(
    vectors: UnitVectors,
    centroids: np.ndarray,
    *,
    start: int = 0,
    stop: int | None = None,
    gpus: Sequence[int] = (),
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The most similar centroid of each row from `start` to `stop`.

    Returns:
        (stop - start,) int64 clusters, and float32 cosines to their centroids.

    Raises:
        ValueError: centroids of another width.
    """
    if centroids.ndim != 2 or centroids.shape[1] != vectors.width:
        raise ValueError(f"centroids have shape {centroids.shape}, but the vectors have width {vectors.width}.")
    pool = ArrayEmbeddings(centroids)
    index = faiss.IndexFlatIP(pool.width)
    index.add(pool.vectors)
    found = search(
        index, pool, vectors, 1, IndexSettings("Flat"), start=start, stop=stop, gpus=gpus, progress=progress
    )
    return found.rows[:, 0], found.similarities[:, 0]


def assign_together(vectors: UnitVectors, centroids: np.ndarray, **options) -> tuple[np.ndarray, np.ndarray]:
    """`assign_clusters` of all rows. The processes of `torch.distributed` share the work, and all get the whole."""
    part = _own_part(len(vectors))
    clusters, similarities = np.zeros(len(vectors), np.int64), np.zeros(len(vectors), np.float32)
    clusters[part.start : part.stop], similarities[part.start : part.stop] = assign_clusters(
        vectors, centroids, start=part.start, stop=part.stop, **options
    )
    for values in (clusters, similarities):
        _sum_over_processes(values)  # each process has zeros for the rows of the others
    return clusters, similarities


class ClusterMembers:
    """The rows of each cluster, from the cluster of each row.

    Args:
        clusters: (n,) integers in [0, num_clusters).
        num_clusters: K.

    Attributes:
        sizes: (K,) int64.
    """

    def __init__(self, clusters: np.ndarray, num_clusters: int):
        clusters = np.asarray(clusters)
        if len(clusters) and not (0 <= clusters.min() and clusters.max() < num_clusters):
            raise ValueError(f"clusters must be in [0, {num_clusters}), but {clusters.max()} is among them.")
        self.sizes = np.bincount(clusters, minlength=num_clusters)
        self._order = np.argsort(clusters, kind="stable")
        self._begins = np.cumsum([0, *self.sizes])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, cluster: int | np.integer) -> np.ndarray:
        """The rows of a cluster in rising order."""
        return self._order[self._begins[cluster] : self._begins[cluster + 1]]
