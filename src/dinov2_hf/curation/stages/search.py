"""Stages that find neighbours: an index trained once, filled in shards, merged, and searched in shards.

An exhaustive index is not kept on disk: it would be a copy of the vectors, and is made of them in a second.
"""

import dataclasses
import json
from pathlib import Path

import faiss
import numpy as np

from ..algorithms.deduplication import Edges, neighbor_edges
from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.neighbors import (
    IndexSettings,
    add_rows,
    build_index,
    choose_index,
    load_index,
    merge_indexes,
    save_index,
    search,
    train_index,
)
from ..algorithms.similarity_counts import count_similarities
from ..algorithms.unit_vectors import ChosenRows, UnitVectors
from ..run_context import Curation
from ..storage.manifests import UnfinishedShard, shard_range


INDEX_FILE = "pool.faiss"


def pool_of(curation: Curation, of: str) -> UnitVectors:
    """What an index holds.

    Args:
        of: "copies" for the whole pool, "benchmarks" for the evaluation images, "retrieval" for what is left of the
            pool.

    Raises:
        ValueError: there is no such image.
    """
    if of == "copies":
        return curation.pool_vectors("embed")
    if of == "retrieval":
        return curation.candidates()
    references = curation.vectors("embed", "benchmark")
    if references is None:
        raise ValueError("benchmarks hold no image that could be read and embedded.")
    return references


def train_index_shard(of: str, curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Choose the index, unless it is given for the pool; an inverted file is trained and saved."""
    arguments, pool = curation.arguments, pool_of(curation, of)
    gpus = gpus_for_faiss(arguments.device)
    if arguments.index is None or of == "benchmarks":
        settings = choose_index(len(pool), pool.width, arguments.index_memory_gb * 1e9, for_gpus=bool(gpus))
    else:
        settings = IndexSettings(arguments.index)
    if arguments.index_probes is not None:
        settings = dataclasses.replace(settings, num_probes=arguments.index_probes)
    (shard.folder / "settings.json").write_text(json.dumps(vars(settings)))
    if settings.factory != "Flat":
        save_index(train_index(pool, settings, seed=arguments.seed, gpus=gpus), shard.folder / INDEX_FILE)
    shard.rows = len(pool)


def fill_index_shard(of: str, curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Add a range of the pool to a copy of the trained index."""
    arguments, pool = curation.arguments, pool_of(curation, of)
    rows = shard_range(len(pool), rank, world_size)
    shard.rows = len(rows)
    if _settings(curation, of).factory != "Flat":
        trained = load_index(curation.folders[f"{of}_train_index"].shard(0) / INDEX_FILE)
        gpus = gpus_for_faiss(arguments.device)
        filled = add_rows(trained, pool, rows.start, rows.stop, gpus=gpus, progress=arguments.progress)
        save_index(filled, shard.folder / INDEX_FILE)


def merge_index_shard(of: str, curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Merge the parts."""
    pool = pool_of(curation, of)
    shard.rows = len(pool)
    if _settings(curation, of).factory != "Flat":
        parts = (load_index(path) for path in curation.folders[f"{of}_fill_index"].files(INDEX_FILE))
        save_index(merge_indexes(parts, len(pool)), shard.folder / INDEX_FILE)


def search_copies_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Neighbours of a range of the pool among the pool: `edges.npz`, `nearest.json` (counts)."""
    arguments, pool = curation.arguments, pool_of(curation, "copies")
    rows = shard_range(len(pool), rank, world_size)
    threshold = min(arguments.deduplication_threshold, arguments.benchmark_threshold)
    num_neighbors = min(arguments.num_neighbors, len(pool) - 1)  # a pool of 20 images is no mistake
    floor = None
    if num_neighbors and len(rows):
        index, settings = _index(curation, "copies")
        # An exhaustive search knows every similarity; others read vectors only while they find copies.
        floor = None if settings.is_exact else threshold
        neighbors = search(
            index,
            pool,
            pool,
            num_neighbors,
            settings,
            start=rows.start,
            stop=rows.stop,
            floor=-1.0 if floor is None else floor,
            skip_self=True,
            gpus=gpus_for_faiss(arguments.device),
            progress=arguments.progress,
        )
        edges = neighbor_edges(neighbors, threshold, start=rows.start)
        nearest = neighbors.similarities[:, 0]
    else:
        edges, nearest = Edges.joined([]), np.empty(0)
    save_edges(edges, shard.folder / "edges.npz")
    counts = count_similarities(
        nearest, arguments.deduplication_threshold, missing=len(rows) - len(nearest), floor=floor
    )
    counts.save(shard.folder / "nearest.json")
    shard.rows = len(rows)


def search_benchmarks_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """The nearest benchmark image of a range of the pool that deduplication left: `edges.npz`, `nearest.json`."""
    arguments, pool, references = curation.arguments, pool_of(curation, "copies"), pool_of(curation, "benchmarks")
    rows = shard_range(len(pool), rank, world_size)
    edges, nearest = Edges.joined([]), np.empty(0)
    left = curation.array("deduplicate", "kept_rows")
    left = np.sort(left[(left >= rows.start) & (left < rows.stop)])
    if len(left):
        index, settings = _index(curation, "benchmarks")
        neighbors = search(
            index,
            references,
            ChosenRows(pool, left),
            1,
            settings,
            gpus=gpus_for_faiss(arguments.device),
            progress=arguments.progress,
        )
        found = neighbor_edges(neighbors, arguments.benchmark_threshold)
        edges = Edges(left[found.rows], found.others, found.similarities)
        nearest = neighbors.similarities[:, 0]
    save_edges(edges, shard.folder / "edges.npz")
    count_similarities(nearest, arguments.benchmark_threshold).save(shard.folder / "nearest.json")
    shard.rows = len(left)


def search_retrieval_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Neighbours in the pool of curated images: `<source>.npz` (queries, rows, similarities) for those by sample."""
    arguments, pool = curation.arguments, pool_of(curation, "retrieval")
    index, settings = _index(curation, "retrieval")
    for number, query_rows, queries in curated_queries(curation, "sample"):
        _, num_neighbors = arguments.retrieval_of(curation.sources.sources[number])
        if num_neighbors > len(pool):
            raise ValueError(
                f"retrieval_num_neighbors is {num_neighbors}, but only {len(pool)} images of the pool are left: take"
                " fewer, or a larger pool."
            )
        part = shard_range(len(query_rows), rank, world_size)
        neighbors = search(
            index,
            pool,
            queries,
            num_neighbors,
            settings,
            start=part.start,
            stop=part.stop,
            gpus=gpus_for_faiss(arguments.device),
            progress=arguments.progress,
        )
        np.savez(shard.folder / f"{number}.npz", rows=neighbors.rows, similarities=neighbors.similarities)
        shard.rows += len(part)


def curated_queries(curation: Curation, mode: str):
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


def save_edges(edges: Edges, path: Path) -> None:
    np.savez(path, rows=edges.rows, others=edges.others, similarities=edges.similarities)


def load_edges(paths: list[Path]) -> Edges:
    """The edges of all shards."""
    parts = []
    for path in paths:
        with np.load(path) as arrays:
            parts.append(Edges(arrays["rows"], arrays["others"], arrays["similarities"]))
    return Edges.joined(parts)


def _settings(curation: Curation, of: str) -> IndexSettings:
    path = curation.folders[f"{of}_train_index"].shard(0) / "settings.json"
    return IndexSettings(**json.loads(path.read_text()))


def _index(curation: Curation, of: str) -> tuple[faiss.Index, IndexSettings]:
    settings = _settings(curation, of)
    if settings.factory == "Flat":
        return build_index(pool_of(curation, of), settings), settings
    return load_index(curation.folders[f"{of}_merge_index"].shard(0) / INDEX_FILE), settings
