"""Images of the pool that resemble those of curated datasets (paper, section 3 and appendix A.4).

* By sample, for large datasets: the k nearest rows of each query image, k = 4 or 32.
* By cluster, for small ones: the pool is clustered; clusters with more than 3 query images give 10,000 rows each, and
  a dataset gets at most 1,000,000.

In the paper's numbers, a row counts each time that a query or a dataset retrieves it: the total of 142,109,386 is the
plain sum over datasets. `combine` counts both ways.

Shapes: `q` queries, `m` retrievals.
"""

from dataclasses import dataclass

import numpy as np

from .clustering import ClusterMembers
from .deduplication import checked_threshold
from .neighbors import Neighbors


@dataclass(frozen=True)
class Retrieval:
    """The rows that one curated dataset retrieves.

    Attributes:
        rows: (m,) int64 rows of the pool, with repeats.
        queries: (m,) int64 the query that retrieved each row; -1 if a cluster did.
        similarities: (m,) float32 cosine to the query; NaN if a cluster retrieved the row.
        report: counts, plain numbers.
    """

    rows: np.ndarray
    queries: np.ndarray
    similarities: np.ndarray
    report: dict


def retrieve_by_sample(neighbors: Neighbors, *, floor: float = -1.0) -> Retrieval:
    """The neighbours of each query image that reach a similarity.

    Args:
        neighbors: (q, k) from `search` with the pool in the index.
        floor: lowest similarity.
    """
    query, column = np.nonzero((neighbors.rows >= 0) & (neighbors.similarities >= checked_threshold(floor)))
    rows = neighbors.rows[query, column]
    num_queries, k = neighbors.rows.shape
    report = {
        "mode": "sample",
        "queries": num_queries,
        "k": k,
        "floor": floor,
        "retrieved": len(rows),
        "below_floor": int((neighbors.rows >= 0).sum()) - len(rows),
        "not_found": int((neighbors.rows < 0).sum()),  # by an index that visits a part of the pool
        "unique": len(np.unique(rows)),
    }
    return Retrieval(rows, query, neighbors.similarities[query, column], report)


def retrieve_by_cluster(
    members: ClusterMembers,
    query_clusters: np.ndarray,
    *,
    min_queries: int = 4,
    rows_per_cluster: int = 10_000,
    max_rows: int = 1_000_000,
    seed: int = 0,
) -> Retrieval:
    """Rows of the clusters that hold enough query images, chosen uniformly.

    Args:
        members: the clusters of the pool.
        query_clusters: (q,) the cluster of each query image, by the same centroids.
        min_queries: a cluster with fewer queries gives no rows; the paper's "more than 3".
        rows_per_cluster: the most rows of one cluster; all of a smaller one (744M rows in 100,000 clusters are 7,440
            on average, so the paper's 10,000 can only be a maximum).
        max_rows: the most rows in all, chosen uniformly among those of all clusters.
        seed: of the choices, which depend only on the seed, the cluster and its rows.

    Raises:
        ValueError: a count is below 1, or a query has a cluster that does not exist.
    """
    for name, value in (("min_queries", min_queries), ("rows_per_cluster", rows_per_cluster), ("max_rows", max_rows)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    query_clusters = np.asarray(query_clusters, dtype=np.int64)
    if len(query_clusters) and not (0 <= query_clusters.min() and query_clusters.max() < len(members)):
        raise ValueError(f"query_clusters must be in [0, {len(members)}), but {query_clusters.max()} is among them.")
    hits = np.bincount(query_clusters, minlength=len(members))
    chosen_clusters = np.flatnonzero(hits >= min_queries)
    parts = [np.empty(0, np.int64)]
    for cluster in chosen_clusters:
        parts.append(_uniform_choice(members[cluster], rows_per_cluster, (seed, int(cluster))))
    rows = np.concatenate(parts)
    retrieved = len(rows)
    rows = _uniform_choice(rows, max_rows, (seed, len(members)))
    report = {
        "mode": "cluster",
        "queries": len(query_clusters),
        "clusters_hit": int((hits > 0).sum()),
        "clusters_chosen": len(chosen_clusters),
        "retrieved_before_cap": retrieved,
        "retrieved": len(rows),
        "unique": len(rows),
    }
    return Retrieval(rows, np.full(len(rows), -1), np.full(len(rows), np.nan, np.float32), report)


def _uniform_choice(rows: np.ndarray, num_rows: int, seed: tuple[int, ...]) -> np.ndarray:
    """At most `num_rows` of the rows, in their order."""
    if len(rows) <= num_rows:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), num_rows, replace=False))]


@dataclass(frozen=True)
class CombinedRetrieval:
    """All datasets together.

    Attributes:
        rows: (u,) int64 rows of the pool that any dataset retrieved, once each, in rising order.
        multiplicity: (u,) int64 how often each was retrieved.
        sources: (s,) int64 the datasets that retrieved each row, by their place in the order given; those of row i are
            `sources[offsets[i] : offsets[i + 1]]`, each once, ascending.
        offsets: (u + 1,) int64.
        report: `multiset` and `unique` counts, and for each dataset what it retrieved, and what no other did.
    """

    rows: np.ndarray
    multiplicity: np.ndarray
    sources: np.ndarray
    offsets: np.ndarray
    report: dict


def combine(retrievals: dict[str, Retrieval]) -> CombinedRetrieval:
    """The union of what several datasets retrieve, with the paper's count (repeats included) beside it."""
    all_rows = np.concatenate([np.empty(0, np.int64), *(retrieval.rows for retrieval in retrievals.values())])
    lengths = [len(retrieval.rows) for retrieval in retrievals.values()]
    rows, multiplicity = np.unique(all_rows, return_counts=True)
    pairs = np.unique(all_rows * len(lengths) + np.repeat(np.arange(len(lengths)), lengths)) if lengths else all_rows
    sources = pairs % max(len(lengths), 1)
    _, begins, num_sources = np.unique(pairs // max(len(lengths), 1), return_index=True, return_counts=True)
    alone = np.bincount(sources[begins[num_sources == 1]], minlength=len(lengths))
    report = {
        "multiset": len(all_rows),
        "unique": len(rows),
        "sources": {
            name: {**retrieval.report, "brought_alone": int(count)}
            for (name, retrieval), count in zip(retrievals.items(), alone, strict=True)
        },
    }
    return CombinedRetrieval(rows, multiplicity, sources, np.append(begins, len(pairs)), report)
