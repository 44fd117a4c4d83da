"""Stages that find neighbours. Each shard searches for a part of the queries."""

import json

import numpy as np

from ..algorithms.deduplication import Edges, neighbor_edges
from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.histograms import histogram
from ..algorithms.neighbors import Neighbors, nearest_of_parts, search
from ..algorithms.threshold_evidence import search_floor
from ..algorithms.unit_vectors import ChosenRows, RowRange, UnitVectors
from ..run_context import Curation
from ..storage.edge_files import save_edges
from ..storage.histogram_files import save_histogram
from ..storage.manifests import UnfinishedShard
from .index import (
    OpenIndex,
    how_benchmarks_are_searched,
    how_copies_are_searched,
    open_copies_indexes,
    open_index,
)
from .pool_parts import hash_of_vectors, index_groups, pieces_of_pool, rows_of_pieces, searched_parts
from .queries import crowded_survivors, curated_queries, floor_of, pool_of
from .stage import POOL, image_shards, stage


def pool_shards(curation: Curation) -> int:
    """A shard for each piece of the sources of the pool."""
    return pieces_of_pool(curation)[-1].stop


def _what_copies_read(curation: Curation, piece: int) -> bytes:
    return json.dumps([piece, how_copies_are_searched(curation, searched_parts(curation, piece))]).encode()


@stage(
    "search_copies",
    needs=["embed", "copies_merge_index"],
    step="deduplicate",
    num_shards=pool_shards,
    reads=_what_copies_read,
    config=lambda curation: {"floor": floor_of(curation.arguments, "copies")},
)
def search_copies(curation: Curation, shard: UnfinishedShard, *, num_neighbors: int) -> None:
    """Find the neighbours of a piece of the pool in its part and in the parts before it, see `pool_parts`. It writes
    `edges.npz`, and `nearest.npy` with the cosines of the nearest."""
    pool, bounds = pool_of(curation, "copies"), rows_of_pieces(curation)
    rows, threshold = range(*bounds[shard.rank : shard.rank + 2].tolist()), floor_of(curation.arguments, "copies")
    queries, found = RowRange(pool, rows.start, rows.stop), []
    for one in open_copies_indexes(curation, searched_parts(curation, shard.rank)) if rows else ():
        is_own = one.first <= rows.start < one.first + len(one.held)
        k = min(num_neighbors, len(one.held) - is_own)  # a pool of 20 images is not a mistake
        if k:
            # An exhaustive search knows every similarity; other searches read vectors only while they find copies.
            floor = -1.0 if one.settings.is_exact else threshold
            own_rows = np.arange(rows.start, rows.stop) - one.first if is_own else None
            neighbors = _search(curation, one, queries, k, range(len(rows)), floor=floor, own_rows=own_rows)
            found.append(neighbors.in_a_whole(one.first))
    edges, nearest = Edges.joined([]), np.full(len(rows), -np.inf, np.float32)
    if found:
        neighbors = nearest_of_parts(found, num_neighbors)
        edges, nearest = neighbor_edges(neighbors, threshold, start=rows.start), neighbors.similarities[:, 0]
    save_edges(edges, shard.folder)
    np.save(shard.folder / "nearest.npy", nearest)
    shard.rows = len(rows)


def _what_benchmarks_read(curation: Curation, piece: int) -> bytes:
    rows = _left_of_piece(curation, piece)
    reads = [hash_of_vectors(curation, range(piece, piece + 1)), how_benchmarks_are_searched(curation)]
    return json.dumps(reads).encode() + rows.tobytes()


@stage(
    "search_benchmarks",
    needs=[POOL, "benchmarks_merge_index"],
    step="relative_deduplicate",
    num_shards=pool_shards,
    reads=_what_benchmarks_read,
    is_wanted=lambda curation: bool(curation.arguments.benchmarks),
    config=lambda curation: {"seed": curation.arguments.seed},  # of the rows that the index was trained on
)
def search_benchmarks(curation: Curation, shard: UnfinishedShard, *, benchmark_threshold: float) -> None:
    """Find the nearest benchmark image of each image that is left of a piece of the pool: `edges.npz`."""
    edges, nearest = Edges.joined([]), np.empty(0)
    left = _left_of_piece(curation, shard.rank)
    if len(left):
        queries = ChosenRows(pool_of(curation, "copies"), left)
        neighbors = _search(curation, open_index(curation, "benchmarks"), queries, 1, range(len(left)))
        found = neighbor_edges(neighbors, search_floor(benchmark_threshold))
        edges = Edges(left[found.rows], found.others, found.similarities)
        nearest = neighbors.similarities[:, 0]
    save_edges(edges, shard.folder)
    counts = histogram(nearest, benchmark_threshold, "Nearest benchmark image", label="images that resemble one above")
    save_histogram(counts, shard.folder)
    shard.rows = len(left)


def _left_of_piece(curation: Curation, piece: int) -> np.ndarray:
    """The rows of the pool that are left of a piece, ascending."""
    first, stop = rows_of_pieces(curation)[piece : piece + 2]
    left = curation.left()[1]
    return np.sort(left[(left >= first) & (left < stop)])


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
    """Find neighbours that copies may have hidden, among the images that deduplication left. An image with 64 copies
    had no place for others among its 64 neighbours. `edges.npz` names rows of the whole pool."""
    rows, crowded = curation.left()[1], crowded_survivors(curation)
    part, edges = shard.rows_of(len(crowded)), Edges.joined([])
    if len(part):
        queries, opened = ChosenRows(pool_of(curation, "copies"), crowded), open_index(curation, "survivors")
        # The nearest is the image itself.
        found = _edges_above(benchmark_threshold, curation, opened, queries, num_neighbors + 1, part)
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
    """Find images of the whole pool that repeat a range of the curated images: `edges.npz`, from the pool to these."""
    _, curated = curation.included_vectors()
    part = shard.rows_of(0 if curated is None else len(curated))
    edges = []
    for opened in open_copies_indexes(curation, index_groups(curation)) if part else ():
        # Further copies belong to the groups of those that are found.
        found = _edges_above(deduplication_threshold, curation, opened, curated, num_neighbors, part)
        edges.append(Edges(found.others, found.rows, found.similarities))
    edges = Edges.joined(edges)
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
    """Find the nearest benchmark image of each curated image in a range of those that go into the dataset:
    `edges.npz`."""
    _, curated = curation.included_vectors()
    part = shard.rows_of(0 if curated is None else len(curated))
    edges, nearest = Edges.joined([]), np.empty(0)
    if len(part):
        found = _search(curation, open_index(curation, "benchmarks"), curated, 1, part)
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
    """Find the neighbours of a range of the images of each curated source that is retrieved by sample:
    `<number of the source>.npz` (rows, similarities)."""
    opened = open_index(curation, "retrieval")
    for number, query_rows, queries in curated_queries(curation, "sample"):
        _, k = curation.arguments.retrieval_of(curation.sources.sources[number])
        if k > len(opened.held):
            raise ValueError(
                f"retrieval_num_neighbors is {k}, but only {len(opened.held)} images of the pool are left: take fewer,"
                " or a larger pool."
            )
        part = shard.rows_of(len(query_rows))
        found = _search(curation, opened, queries, k, part)
        np.savez(shard.folder / f"{number}.npz", rows=found.rows, similarities=found.similarities)
        shard.rows += len(part)


def _search(curation: Curation, opened: OpenIndex, queries: UnitVectors, k: int, part: range, **options) -> Neighbors:
    where = {"gpus": gpus_for_faiss(curation.arguments.device), "progress": curation.arguments.progress}
    return search(
        opened.index, opened.held, queries, k, opened.settings, start=part.start, stop=part.stop, **where, **options
    )


def _edges_above(
    threshold: float, curation: Curation, opened: OpenIndex, queries: UnitVectors, k: int, part: range
) -> Edges:
    """Edges from a range of the queries to their neighbours above a threshold. An approximate search looks no further
    than the threshold."""
    floor = -1.0 if opened.settings.is_exact else threshold
    found = _search(curation, opened, queries, min(k, len(opened.held)), part, floor=floor)
    return neighbor_edges(found.in_a_whole(opened.first), threshold, start=part.start)
