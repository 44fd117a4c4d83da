"""Stages that choose from the pool: by curated images (paper, section 3), by a hierarchy of clusters, or all of it."""

import json

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..algorithms.clustering import ClusterMembers, assign_clusters, spherical_kmeans
from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.hierarchical_clustering import balanced_sample, hierarchical_kmeans
from ..algorithms.histograms import histogram, sum_of_histograms
from ..algorithms.neighbors import Neighbors
from ..algorithms.pool_retrieval import Retrieval, combine, retrieve_by_cluster, retrieve_by_sample
from ..run_context import Curation
from ..storage.dropped_images import Dropped
from ..storage.histogram_files import save_histogram
from ..storage.manifests import UnfinishedShard
from .queries import curated_queries
from .stage import POOL, image_shards, stage


# Rows of the pool for each cluster, to learn its centroid from.
TRAINING_ROWS_PER_CLUSTER = 256
SELECTED_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "times_retrieved": pa.int64(),
        "retrieved_for": pa.list_(pa.int32()),  # numbers of the curated sources for which it was retrieved, ascending
    }
)


def _by_cluster(curation: Curation) -> bool:
    return "cluster" in curation.arguments.retrieval_modes


def where_to_cluster(curation: Curation) -> dict:
    """On which GPUs k-means runs, and whether it shows a bar."""
    return {"gpus": gpus_for_faiss(curation.arguments.device), "progress": curation.arguments.progress}


@stage("kmeans", step="retrieve", collective=True, is_wanted=_by_cluster)
def kmeans(
    curation: Curation, shard: UnfinishedShard, *, num_clusters: int, kmeans_iterations: int, seed: int
) -> None:
    """Cluster the pool that is left: `centroids.npy`."""
    _, pool = curation.candidates()
    if num_clusters > len(pool):
        raise ValueError(
            f"num_clusters is {num_clusters}, but only {len(pool)} images of the pool are left: take fewer clusters,"
            " or a larger pool."
        )
    result = spherical_kmeans(
        pool,
        num_clusters,
        num_iterations=kmeans_iterations,
        training_rows=TRAINING_ROWS_PER_CLUSTER * num_clusters,
        seed=seed,
        **where_to_cluster(curation),
    )
    np.save(shard.folder / "centroids.npy", result.centroids)
    shard.rows = len(result.centroids)


@stage("assign_clusters", needs=["kmeans"], step="retrieve", num_shards=image_shards, is_wanted=_by_cluster)
def assign_clusters_of_pool(curation: Curation, shard: UnfinishedShard) -> None:
    """Find the cluster of each image in a range of the pool that is left: `clusters.npy`."""
    _, pool = curation.candidates()
    rows = shard.rows_of(len(pool))
    centroids = curation.array("kmeans", "centroids")
    clusters, _ = assign_clusters(pool, centroids, start=rows.start, stop=rows.stop, **where_to_cluster(curation))
    np.save(shard.folder / "clusters.npy", clusters)
    shard.rows = len(rows)


@stage(
    "select",
    title="selected",
    writes_left=True,
    needs=[POOL, "search_retrieval", "assign_clusters"],
    step="retrieve",
    is_wanted=lambda curation: curation.arguments.how_selected == "retrieval",
    config=lambda curation: {"modes": curation.arguments.modes_of_sources},
)
def retrieve(
    curation: Curation, shard: UnfinishedShard, *, min_similarity: float, min_cluster_queries: int,
    images_per_cluster: int, max_per_source: int, seed: int,
) -> Dropped:  # fmt: skip
    """Retrieve for all curated sources: `selected.parquet`, `pairs.parquet` (queries of the report), `report.json`."""
    pool_ids, _ = curation.candidates()
    retrievals: dict[int, Retrieval] = {}  # by the number of the source
    pairs, counts = [], []
    for number, query_ids, _ in curated_queries(curation, "sample"):
        parts = []
        for path in curation.folders["search_retrieval"].files(f"{number}.npz"):
            with np.load(path) as arrays:
                parts.append((arrays["rows"], arrays["similarities"]))
        neighbors = Neighbors(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        found = retrieve_by_sample(neighbors, floor=min_similarity)
        retrievals[number] = found
        counts.append(
            histogram(
                neighbors.similarities, min_similarity if min_similarity > -1 else None,
                "Image of the pool and the curated image it was found for", unit="pairs", side="below",
                label="pairs not retrieved below",
            )
        )  # fmt: skip
        pairs.append((query_ids[found.queries], pool_ids[found.rows], found.similarities))
    if _by_cluster(curation):
        centroids = curation.array("kmeans", "centroids")
        clusters = np.concatenate([np.load(p) for p in curation.folders["assign_clusters"].files("clusters.npy")])
        members = ClusterMembers(clusters, len(centroids))
        for number, _, queries in curated_queries(curation, "cluster"):
            query_clusters, _ = assign_clusters(queries, centroids, gpus=gpus_for_faiss(curation.arguments.device))
            retrievals[number] = retrieve_by_cluster(
                members,
                query_clusters,
                min_queries=min_cluster_queries + 1,
                rows_per_cluster=images_per_cluster,
                max_rows=max_per_source,
                seed=seed,
            )
    numbers = sorted(retrievals)
    combined = combine({curation.sources.sources[number].name: retrievals[number] for number in numbers})
    retrieved_for = pa.ListArray.from_arrays(
        pa.array(combined.offsets, pa.int32()), pa.array(np.array(numbers, np.int32)[combined.sources])
    )
    if counts:
        save_histogram(sum_of_histograms(counts), shard.folder)
    queries, found, similarities = (
        np.concatenate([np.empty(0), *arrays]) for arrays in (zip(*pairs, strict=True) if pairs else [[], [], []])
    )
    table = {"query": queries.astype(np.int64), "row_id": found.astype(np.int64), "similarity": similarities}
    parquet.write_table(pa.table(table), shard.folder / "pairs.parquet")
    (shard.folder / "report.json").write_text(json.dumps({"how": "retrieval", **combined.report}, indent=1))
    return _selected(shard, pool_ids, combined.rows, "not retrieved", combined.multiplicity, retrieved_for)


@stage(
    "select",
    title="selected",
    writes_left=True,
    step="retrieve",
    collective=True,
    is_wanted=lambda curation: curation.arguments.how_selected == "hierarchical",
)
def sample_hierarchy(
    curation: Curation, shard: UnfinishedShard, *, hierarchy: list[int], hierarchy_resamplings: int,
    kmeans_iterations: int, target_size: int, seed: int,
) -> Dropped | None:  # fmt: skip
    """Draw a balanced sample of the pool that is left: `selected.parquet`, `report.json`."""
    pool_ids, pool = curation.candidates()
    if hierarchy[0] > len(pool):
        raise ValueError(
            f"hierarchy begins with {hierarchy[0]} clusters, but only {len(pool)} images of the pool are left: take"
            " fewer clusters, or a larger pool."
        )
    tree = hierarchical_kmeans(
        pool,
        hierarchy,
        num_resamplings=hierarchy_resamplings,
        num_iterations=kmeans_iterations,
        training_rows=TRAINING_ROWS_PER_CLUSTER * hierarchy[0],
        seed=seed,
        **where_to_cluster(curation),
    )
    if not shard.is_kept:
        return None
    rows = balanced_sample(tree, target_size, seed=seed)
    top = tree.clusters(len(hierarchy))
    report = {
        "how": "hierarchical",
        "unique": len(rows),
        "multiset": len(rows),
        "levels": list(hierarchy),
        "pool_by_top_cluster": np.bincount(top, minlength=hierarchy[-1]).tolist()[:1000],
        "selected_by_top_cluster": np.bincount(top[rows], minlength=hierarchy[-1]).tolist()[:1000],
    }
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    return _selected(shard, pool_ids, rows, "not drawn")


@stage(
    "select",
    title="selected",
    writes_left=True,
    step="retrieve",
    is_wanted=lambda curation: curation.arguments.how_selected == "all",
)
def select_all(curation: Curation, shard: UnfinishedShard) -> Dropped:
    """Select all of the pool that is left: `selected.parquet`, `report.json`."""
    pool_ids, _ = curation.left()
    report = {"how": "all", "unique": len(pool_ids), "multiset": len(pool_ids)}
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    return _selected(shard, pool_ids, np.arange(len(pool_ids)), "")


def _selected(
    shard: UnfinishedShard, pool_ids: np.ndarray, rows: np.ndarray, reason: str, times: np.ndarray | None = None,
    retrieved_for: pa.ListArray | None = None,
) -> Dropped:  # fmt: skip
    """Write the selected rows of the pool; the others are dropped."""
    table = {
        "row_id": pool_ids[rows],
        "times_retrieved": np.ones(len(rows), np.int64) if times is None else times,
        "retrieved_for": [[]] * len(rows) if retrieved_for is None else retrieved_for,
    }
    parquet.write_table(pa.table(table, schema=SELECTED_SCHEMA), shard.folder / "selected.parquet")
    left = np.ones(len(pool_ids), bool)
    left[rows] = False
    shard.rows = len(rows)
    return Dropped(pool_ids[left], reason)
