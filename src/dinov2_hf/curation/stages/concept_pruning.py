"""Stages that a recipe may name: SemDeDup, pruning by the density of concepts, and a sample balanced over them.

Each stage clusters the images that are left of the pool, by the vectors that serve retrieval. They run after
deduplication and before the selection.
"""

from dataclasses import dataclass

import numpy as np

from ..algorithms.clustering import ClusterMembers, assign_together, spherical_kmeans
from ..algorithms.hierarchical_clustering import balanced_counts
from ..algorithms.histograms import histogram
from ..algorithms.pruning import concept_complexity, counts_by_complexity, least_typical, semantic_duplicates
from ..algorithms.unit_vectors import UnitVectors
from ..run_context import Curation
from ..storage.dropped_images import Dropped
from ..storage.histogram_files import save_histogram
from ..storage.manifests import UnfinishedShard
from .select import TRAINING_ROWS_PER_CLUSTER, where_to_cluster
from .stage import NAMED_STAGES, stage


# They run in the order in which the recipe names them.
PLACE = {"after": "retrieval_embed", "collective": True, "step": "retrieve"}


@dataclass(frozen=True)
class Clustered:
    """What is left of the pool, in clusters.

    Attributes:
        row_ids: (n,) of the images.
        vectors: the vectors of these images.
        centroids: (K, D).
        members: rows of each cluster.
        typical: (n,) cosine between each image and its centroid.
    """

    row_ids: np.ndarray
    vectors: UnitVectors
    centroids: np.ndarray
    members: ClusterMembers
    typical: np.ndarray


def _clustered(curation: Curation, clusters: int | None, kmeans_iterations: int, seed: int) -> Clustered:
    row_ids, vectors = curation.candidates()
    count = round(len(row_ids) ** 0.5) if clusters is None else clusters
    if not 1 <= count <= len(row_ids):
        raise ValueError(f"clusters is {clusters}, but must be from 1 to the {len(row_ids)} images that are left.")
    where = where_to_cluster(curation)
    found = spherical_kmeans(
        vectors, count, num_iterations=kmeans_iterations, training_rows=TRAINING_ROWS_PER_CLUSTER * count, seed=seed,
        **where,
    )  # fmt: skip
    assigned, typical = assign_together(vectors, found.centroids, **where)
    return Clustered(row_ids, vectors, found.centroids, ClusterMembers(assigned, count), typical)


@NAMED_STAGES.register("semdedup")
@stage("semdedup", title="no semantic duplicates", **PLACE)
def semdedup(
    curation: Curation, shard: UnfinishedShard, *, threshold: float = 0.95, clusters: int | None = None,
    kmeans_iterations: int, seed: int,
) -> Dropped | None:  # fmt: skip
    """Keep the least typical of images of one cluster whose cosine exceeds `threshold` (Abbas et al. 2023)."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, but must be a cosine, from -1 to 1.")
    pool = _clustered(curation, clusters, kmeans_iterations, seed)
    if not shard.is_kept:
        return None
    found = semantic_duplicates(pool.vectors, pool.members, pool.typical, threshold)
    title = "Nearest image that stays in its cluster"
    save_histogram(histogram(found.nearest, threshold, title, label="semantic duplicates above"), shard.folder)
    ids, cosines = pool.row_ids, found.nearest[found.dropped]
    return Dropped(ids[found.dropped], f"semantic duplicate (cosine > {threshold})", ids[found.duplicate_of], cosines)


@NAMED_STAGES.register("density_pruning")
@stage("density_pruning", title="pruned by density", **PLACE)
def density_pruning(
    curation: Curation, shard: UnfinishedShard, *, keep: float = 0.5, temperature: float = 0.1,
    clusters: int | None = None, kmeans_iterations: int, seed: int,
) -> Dropped | None:  # fmt: skip
    """Keep a share of the pool. Clusters that are wide and far from others keep more images. Each cluster keeps its
    least typical ones (Abbas et al. 2024)."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0.")
    pool = _clustered(curation, clusters, kmeans_iterations, seed)
    if not shard.is_kept:
        return None
    sizes = pool.members.sizes
    total = max(_number_to_keep(keep, len(pool.row_ids)), int((sizes > 0).sum()))
    complexity = concept_complexity(pool.centroids, pool.members, pool.typical)
    counts = counts_by_complexity(complexity, sizes, total, temperature)
    return _without(pool, least_typical(pool.members, pool.typical, counts), "pruned: typical of a simple concept")


@NAMED_STAGES.register("balance")
@stage("balance", title="balanced over concepts", **PLACE)
def balance(
    curation: Curation, shard: UnfinishedShard, *, keep: float = 0.5, clusters: int | None = None,
    kmeans_iterations: int, seed: int,
) -> Dropped | None:  # fmt: skip
    """Keep a share of the pool: equally many images of each cluster, as far as a cluster has that many."""
    pool = _clustered(curation, clusters, kmeans_iterations, seed)
    if not shard.is_kept:
        return None
    generator = np.random.default_rng(seed)
    counts = balanced_counts(pool.members.sizes, _number_to_keep(keep, len(pool.row_ids)), generator)
    chosen = [
        generator.choice(pool.members[cluster], counts[cluster], replace=False) for cluster in range(len(counts))
    ]
    return _without(pool, np.concatenate(chosen), "not drawn: its concept is frequent")


def _number_to_keep(keep: float, num_images: int) -> int:
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, but must be the share of the images that stays, above 0 and at most 1.")
    return max(1, round(keep * num_images))


def _without(pool: Clustered, kept: np.ndarray, reason: str) -> Dropped:
    goes = np.ones(len(pool.row_ids), bool)
    goes[kept] = False
    return Dropped(pool.row_ids[goes], reason)
