"""Stages that find neighbours in shards of the queries."""

from collections.abc import Iterator

import numpy as np

from ..algorithms.deduplication import Edges, neighbor_edges
from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.histograms import histogram
from ..algorithms.neighbors import Neighbors, search
from ..algorithms.threshold_evidence import search_floor
from ..algorithms.unit_vectors import ChosenRows, UnitVectors
from ..run_context import Curation
from ..storage.edge_files import save_edges
from ..storage.histogram_files import save_histogram
from ..storage.manifests import UnfinishedShard
from .index import crowded_survivors, open_index, pool_of
from .stage import POOL, image_shards, stage


@stage("search_copies", needs=["embed", "copies_merge_index"], step="deduplicate", num_shards=image_shards)
def search_copies(
    curation: Curation, shard: UnfinishedShard, *, num_neighbors: int, deduplication_threshold: float,
    benchmark_threshold: float,
) -> None:  # fmt: skip
    """Neighbours of a range of the pool among the pool: `edges.npz`."""
    pool = pool_of(curation, "copies")
    rows = shard.rows_of(len(pool))
    threshold = min(search_floor(deduplication_threshold), benchmark_threshold)
    k = min(num_neighbors, len(pool) - 1)  # a pool of 20 images is no mistake
    edges, nearest, floor = Edges.joined([]), np.empty(0), None
    if k and len(rows):
        _, settings = index = open_index(curation, "copies")
        # An exhaustive search knows every similarity; others read vectors only while they find copies.
        floor = None if settings.is_exact else threshold
        found = _search(curation, index, pool, pool, k, rows, floor=-1.0 if floor is None else floor, skip_self=True)
        edges, nearest = neighbor_edges(found, threshold, start=rows.start), found.similarities[:, 0]
    save_edges(edges, shard.folder)
    counts = histogram(
        nearest, deduplication_threshold, "Nearest other image of the pool", label="images with a copy above",
        missing=len(rows) - len(nearest), floor=floor,
    )  # fmt: skip
    save_histogram(counts, shard.folder)
    shard.rows = len(rows)


@stage(
    "search_benchmarks",
    needs=[POOL, "benchmarks_merge_index"],
    step="relative_deduplicate",
    num_shards=image_shards,
    is_wanted=lambda curation: bool(curation.arguments.benchmarks),
)
def search_benchmarks(curation: Curation, shard: UnfinishedShard, *, benchmark_threshold: float) -> None:
    """The nearest benchmark image of a range of the pool, of what is left of it: `edges.npz`."""
    pool, references = pool_of(curation, "copies"), pool_of(curation, "benchmarks")
    rows = shard.rows_of(len(pool))
    edges, nearest = Edges.joined([]), np.empty(0)
    left = curation.left()[1]
    left = np.sort(left[(left >= rows.start) & (left < rows.stop)])
    if len(left):
        index = open_index(curation, "benchmarks")
        neighbors = _search(curation, index, references, ChosenRows(pool, left), 1, range(len(left)))
        found = neighbor_edges(neighbors, search_floor(benchmark_threshold))
        edges = Edges(left[found.rows], found.others, found.similarities)
        nearest = neighbors.similarities[:, 0]
    save_edges(edges, shard.folder)
    counts = histogram(nearest, benchmark_threshold, "Nearest benchmark image", label="images that resemble one above")
    save_histogram(counts, shard.folder)
    shard.rows = len(rows)


@stage(
    "search_survivors",
    needs=["survivors_merge_index", "search_copies"],
    step="relative_deduplicate",
    num_shards=image_shards,
    is_wanted=lambda curation: bool(curation.arguments.benchmarks),
)
def search_survivors(
    curation: Curation, shard: UnfinishedShard, *, num_neighbors: int, benchmark_threshold: float
) -> None:
    """Neighbours among what deduplication left, of those that it may have hidden: an image with 64 copies had no place
    for others among its 64 neighbours. `edges.npz`, in rows of the whole pool."""
    pool, rows = pool_of(curation, "survivors"), curation.left()[1]
    crowded = crowded_survivors(curation)
    part = shard.rows_of(len(crowded))
    edges, k = Edges.joined([]), min(num_neighbors + 1, len(pool))  # of which the nearest is the image itself
    if len(part):
        queries = ChosenRows(pool_of(curation, "copies"), crowded)
        found = _edges_above(benchmark_threshold, curation, "survivors", pool, queries, k, part)
        is_other = crowded[found.rows] != rows[found.others]
        edges = Edges(crowded[found.rows], rows[found.others], found.similarities).chosen(is_other)
    save_edges(edges, shard.folder)
    shard.rows = len(part)


@stage(
    "search_curated_copies",
    needs=["embed", "copies_merge_index"],
    step="deduplicate",
    num_shards=image_shards,
    is_wanted=lambda curation: curation.arguments.excludes_copies_of_curated,
    config=lambda curation: {"included": curation.arguments.included_names},
)
def search_curated_copies(
    curation: Curation, shard: UnfinishedShard, *, num_neighbors: int, deduplication_threshold: float
) -> None:
    """Images of the whole pool that repeat a range of the curated images: `edges.npz`, from the pool to these."""
    pool, (_, curated) = pool_of(curation, "copies"), curation.included_vectors()
    part = shard.rows_of(0 if curated is None else len(curated))
    edges = Edges.joined([])
    if len(part):
        k = min(num_neighbors, len(pool))  # further copies are in the group of these
        found = _edges_above(deduplication_threshold, curation, "copies", pool, curated, k, part)
        edges = Edges(found.others, found.rows, found.similarities)
    save_edges(edges, shard.folder)
    shard.rows = len(part)


@stage(
    "search_leaks",
    needs=["embed", "benchmarks_merge_index"],
    step="relative_deduplicate",
    num_shards=image_shards,
    is_wanted=lambda curation: curation.arguments.finds_leaks,
    config=lambda curation: {"included": curation.arguments.included_names},
)
def search_leaks(curation: Curation, shard: UnfinishedShard, *, benchmark_threshold: float) -> None:
    """The nearest benchmark image of a range of the curated images that go into the dataset: `edges.npz`."""
    _, curated = curation.included_vectors()
    part = shard.rows_of(0 if curated is None else len(curated))
    edges, nearest = Edges.joined([]), np.empty(0)
    if len(part):
        index = open_index(curation, "benchmarks")
        found = _search(curation, index, pool_of(curation, "benchmarks"), curated, 1, part)
        edges, nearest = neighbor_edges(found, benchmark_threshold, start=part.start), found.similarities[:, 0]
    save_edges(edges, shard.folder)
    title = "Nearest benchmark image of curated images"
    counts = histogram(nearest, benchmark_threshold, title, label="curated images that resemble one above")
    save_histogram(counts, shard.folder)
    shard.rows = len(part)


@stage(
    "search_retrieval",
    needs=["retrieval_merge_index"],
    step="retrieve",
    num_shards=image_shards,
    is_wanted=lambda curation: "sample" in curation.arguments.retrieval_modes,
    config=lambda curation: {"modes": curation.arguments.modes_of_sources},
)
def search_retrieval(curation: Curation, shard: UnfinishedShard) -> None:
    """Neighbours of a range of the images of each curated source: `<number of the source>.npz` (rows, similarities)
    for those by sample."""
    pool, index = pool_of(curation, "retrieval"), open_index(curation, "retrieval")
    for number, query_rows, queries in curated_queries(curation, "sample"):
        _, k = curation.arguments.retrieval_of(curation.sources.sources[number])
        if k > len(pool):
            raise ValueError(
                f"retrieval_num_neighbors is {k}, but only {len(pool)} images of the pool are left: take fewer, or a"
                " larger pool."
            )
        part = shard.rows_of(len(query_rows))
        found = _search(curation, index, pool, queries, k, part)
        np.savez(shard.folder / f"{number}.npz", rows=found.rows, similarities=found.similarities)
        shard.rows += len(part)


def _search(
    curation: Curation, index: tuple, pool: UnitVectors, queries: UnitVectors, k: int, part: range, **options
) -> Neighbors:
    opened, settings = index
    where = {"gpus": gpus_for_faiss(curation.arguments.device), "progress": curation.arguments.progress}
    return search(opened, pool, queries, k, settings, start=part.start, stop=part.stop, **where, **options)


def _edges_above(
    threshold: float, curation: Curation, name: str, pool: UnitVectors, queries: UnitVectors, k: int, part: range
) -> Edges:
    """Of a range of the queries, to their neighbours above a threshold; an approximate search looks no further."""
    _, settings = index = open_index(curation, name)
    floor = -1.0 if settings.is_exact else threshold
    return neighbor_edges(_search(curation, index, pool, queries, k, part, floor=floor), threshold, start=part.start)


def curated_queries(curation: Curation, mode: str) -> Iterator[tuple[int, np.ndarray, UnitVectors]]:
    """(number of the source, its row ids, their vectors) of the curated sources of a way of retrieval."""
    store = curation.vectors(curation.retrieval_stage, "curated")
    ids = np.empty(0, np.int64) if store is None else store.ids
    for number, (role, source) in enumerate(curation.arguments.sources):
        if role == "curated" and curation.arguments.retrieval_of(source)[0] == mode:
            of_source = curation.sources.range_of(number)
            rows = np.flatnonzero((ids >= of_source.start) & (ids < of_source.stop))
            if not len(rows):
                raise ValueError(f"the curated source {source.name!r} has no image that could be read and embedded.")
            yield number, ids[rows], ChosenRows(store, rows)
