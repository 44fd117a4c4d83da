"""Stages that choose from the pool: by curated images (paper, section 3), by a hierarchy of clusters, or all of it."""

import json

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..algorithms.clustering import ClusterMembers, assign_clusters, spherical_kmeans
from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.hierarchical_clustering import balanced_sample, hierarchical_kmeans
from ..algorithms.neighbors import Neighbors
from ..algorithms.retrieval import Retrieval, combine, retrieve_by_cluster, retrieve_by_sample
from ..algorithms.similarity_counts import count_similarities, sum_of_counts
from ..run_context import Curation
from ..storage.dropped_images import write_dropped
from ..storage.manifests import UnfinishedShard, shard_range
from .search import curated_queries


# Of the pool, for each cluster, to learn its centroid from.
TRAINING_ROWS_PER_CLUSTER = 256
SELECTED_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "times_retrieved": pa.int64(),
        "retrieved_for": pa.list_(pa.int32()),  # numbers of the curated sources that brought it, ascending
    }
)


def kmeans_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Cluster the pool that is left: `centroids.npy`."""
    arguments, pool = curation.arguments, curation.candidates()
    if arguments.num_clusters > len(pool):
        raise ValueError(
            f"num_clusters is {arguments.num_clusters}, but only {len(pool)} images of the pool are left: take fewer"
            " clusters, or a larger pool."
        )
    result = spherical_kmeans(
        pool,
        arguments.num_clusters,
        num_iterations=arguments.kmeans_iterations,
        training_rows=TRAINING_ROWS_PER_CLUSTER * arguments.num_clusters,
        seed=arguments.seed,
        gpus=gpus_for_faiss(arguments.device),
        progress=arguments.progress,
    )
    np.save(shard.folder / "centroids.npy", result.centroids)
    shard.rows = len(result.centroids)


def assign_clusters_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """The cluster of a range of the pool that is left: `clusters.npy`."""
    arguments, pool = curation.arguments, curation.candidates()
    rows = shard_range(len(pool), rank, world_size)
    clusters, _ = assign_clusters(
        pool,
        curation.array("kmeans", "centroids"),
        start=rows.start,
        stop=rows.stop,
        gpus=gpus_for_faiss(arguments.device),
        progress=arguments.progress,
    )
    np.save(shard.folder / "clusters.npy", clusters)
    shard.rows = len(rows)


def retrieve_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """What all curated sources bring: `selected.parquet`, `pairs.parquet` (queries of the report), `report.json`."""
    arguments, pool_ids = curation.arguments, curation.candidate_ids()
    retrievals: dict[int, Retrieval] = {}  # by the number of the source
    pairs, counts = [], []
    for number, query_ids, _ in curated_queries(curation, "sample"):
        parts = []
        for path in curation.folders["search_retrieval"].files(f"{number}.npz"):
            with np.load(path) as arrays:
                parts.append((arrays["rows"], arrays["similarities"]))
        neighbors = Neighbors(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        found = retrieve_by_sample(neighbors, floor=arguments.min_similarity)
        retrievals[number] = found
        counts.append(count_similarities(neighbors.similarities, arguments.min_similarity))
        pairs.append((query_ids[found.queries], pool_ids[found.rows], found.similarities))
    by_cluster = list(curated_queries(curation, "cluster"))
    if by_cluster:
        centroids = curation.array("kmeans", "centroids")
        clusters = np.concatenate([np.load(p) for p in curation.folders["assign_clusters"].files("clusters.npy")])
        members = ClusterMembers(clusters, len(centroids))
        for number, _, queries in by_cluster:
            query_clusters, _ = assign_clusters(queries, centroids, gpus=gpus_for_faiss(arguments.device))
            retrievals[number] = retrieve_by_cluster(
                members,
                query_clusters,
                min_queries=arguments.min_cluster_queries + 1,
                rows_per_cluster=arguments.images_per_cluster,
                max_rows=arguments.max_per_source,
                seed=arguments.seed,
            )
    numbers = sorted(retrievals)
    combined = combine({curation.sources.sources[number].name: retrievals[number] for number in numbers})
    retrieved_for = pa.ListArray.from_arrays(
        pa.array(combined.offsets, pa.int32()), pa.array(np.array(numbers, np.int32)[combined.sources])
    )
    _write_selection(curation, shard, pool_ids, combined.rows, combined.multiplicity, retrieved_for, "not retrieved")
    sum_of_counts(counts).save(shard.folder / "similarities.json")
    queries, found, similarities = (
        np.concatenate([np.empty(0), *arrays]) for arrays in (zip(*pairs, strict=True) if pairs else [[], [], []])
    )
    table = {"query": queries.astype(np.int64), "row_id": found.astype(np.int64), "similarity": similarities}
    parquet.write_table(pa.table(table), shard.folder / "pairs.parquet")
    (shard.folder / "report.json").write_text(json.dumps({"how": "retrieval", **combined.report}, indent=1))


def sample_hierarchy_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """A balanced sample of the pool that is left: `selected.parquet`, `report.json`."""
    arguments, pool, pool_ids = curation.arguments, curation.candidates(), curation.candidate_ids()
    if arguments.hierarchy[0] > len(pool):
        raise ValueError(
            f"hierarchy begins with {arguments.hierarchy[0]} clusters, but only {len(pool)} images of the pool are"
            " left: take fewer clusters, or a larger pool."
        )
    hierarchy = hierarchical_kmeans(
        pool,
        arguments.hierarchy,
        num_resamplings=arguments.hierarchy_resamplings,
        num_iterations=arguments.kmeans_iterations,
        training_rows=TRAINING_ROWS_PER_CLUSTER * arguments.hierarchy[0],
        seed=arguments.seed,
        gpus=gpus_for_faiss(arguments.device),
        progress=arguments.progress,
    )
    if not shard.is_kept:
        return
    rows = balanced_sample(hierarchy, arguments.target_size, seed=arguments.seed)
    top = hierarchy.clusters(len(arguments.hierarchy))
    report = {
        "how": "hierarchical",
        "unique": len(rows),
        "multiset": len(rows),
        "levels": list(arguments.hierarchy),
        "pool_by_top_cluster": np.bincount(top, minlength=arguments.hierarchy[-1]).tolist()[:1000],
        "selected_by_top_cluster": np.bincount(top[rows], minlength=arguments.hierarchy[-1]).tolist()[:1000],
    }
    _write_selection(curation, shard, pool_ids, rows, None, None, "not drawn")
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))


def select_all_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """All of the pool that is left: `selected.parquet`, `report.json`."""
    pool_ids = curation.survivors()
    rows = np.arange(len(pool_ids))
    _write_selection(curation, shard, pool_ids, rows, None, None, "")
    report = {"how": "all", "unique": len(rows), "multiset": len(rows)}
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))


def _write_selection(
    curation: Curation, shard: UnfinishedShard, pool_ids: np.ndarray, rows: np.ndarray, times: np.ndarray | None,
    retrieved_for: pa.ListArray | None, reason: str,
) -> None:  # fmt: skip
    """The selected rows of the pool, and the others as dropped."""
    table = {
        "row_id": pool_ids[rows],
        "times_retrieved": np.ones(len(rows), np.int64) if times is None else times,
        "retrieved_for": [[]] * len(rows) if retrieved_for is None else retrieved_for,
    }
    parquet.write_table(pa.table(table, schema=SELECTED_SCHEMA), shard.folder / "selected.parquet")
    left = np.ones(len(pool_ids), bool)
    left[rows] = False
    write_dropped(curation.dropped("select", pool_ids[left], reason), shard.folder)
    shard.rows = len(rows)
