"""What each index holds, which images are searched for in it, and a sample of these to measure the recall."""

from collections.abc import Iterator

import numpy as np

from ..algorithms.deduplication import crowded_rows
from ..algorithms.search_recall import SAMPLED_QUERIES
from ..algorithms.threshold_evidence import search_floor
from ..algorithms.unit_vectors import ChosenRows, UnitVectors
from ..arguments import CurationArguments
from ..run_context import Curation
from ..storage.edge_files import load_edges


def pool_of(curation: Curation, of: str) -> UnitVectors:
    """The vectors that an index holds.

    Args:
        of: "copies" for the whole pool, "survivors" for what deduplication left of it, "benchmarks" for the evaluation
            images, "retrieval" for what is left of the pool, as vectors of the embedder of retrieval.

    Raises:
        ValueError: no evaluation image could be read and embedded.
    """
    if of == "copies":
        return curation.pool_vectors()
    if of == "survivors":
        return ChosenRows(curation.pool_vectors(), curation.left()[1])
    if of == "retrieval":
        return curation.candidates()[1]
    references = curation.vectors("embed", "benchmark")
    if references is None:
        raise ValueError("benchmarks hold no image that could be read and embedded.")
    return references


def neighbors_wanted(arguments: CurationArguments, of: str) -> int:
    """How many neighbours of an image are searched for in an index, at most."""
    if of == "benchmarks":
        return 1
    if of != "retrieval":
        return arguments.num_neighbors
    return max(count for mode, count in arguments.modes_of_sources.values() if mode == "sample")


def floor_of(arguments: CurationArguments, of: str) -> float:
    """The cosine above which neighbours matter; -1: all of them do."""
    if of == "copies":
        return min(search_floor(arguments.deduplication_threshold), arguments.benchmark_threshold)
    return arguments.benchmark_threshold if of == "survivors" else -1.0


def crowded_survivors(curation: Curation) -> np.ndarray:
    """Rows that are left of the pool whose 64 neighbours may hide others that are left; see `crowded_rows`."""
    arguments, pool = curation.arguments, curation.pool_vectors()
    kept = np.zeros(len(pool), bool)
    kept[curation.left()[1]] = True
    if arguments.num_neighbors >= len(pool) - 1:  # the lists hold all
        return np.empty(0, np.int64)
    edges = load_edges(curation.folders["search_copies"])
    return crowded_rows(edges, kept, arguments.num_neighbors, arguments.benchmark_threshold)


def curated_queries(curation: Curation, mode: str) -> Iterator[tuple[int, np.ndarray, ChosenRows]]:
    """(number of the source, its row ids, their vectors) of each curated source with this mode of retrieval."""
    store = curation.vectors(curation.retrieval_stage, "curated")
    ids = np.empty(0, np.int64) if store is None else store.ids
    for number, (role, source) in enumerate(curation.arguments.sources):
        if role == "curated" and curation.arguments.retrieval_of(source)[0] == mode:
            of_source = curation.sources.range_of(number)
            rows = np.flatnonzero((ids >= of_source.start) & (ids < of_source.stop))
            if not len(rows):
                raise ValueError(f"the curated source {source.name!r} has no image that could be read and embedded.")
            yield number, ids[rows], ChosenRows(store, rows)


def sampled_queries(curation: Curation, of: str, held: UnitVectors, seed: int) -> tuple[ChosenRows, np.ndarray | None]:
    """Some of the images that are searched for in an index, and their rows in that index; None: they are not in it."""
    if of == "copies":
        rows = _some(np.arange(len(held)), seed)
        return ChosenRows(held, rows), rows
    if of == "survivors":
        rows = _some(np.flatnonzero(np.isin(held.rows, crowded_survivors(curation))), seed)
        return ChosenRows(held, rows), rows
    if of == "benchmarks":
        pool = curation.pool_vectors()
        return ChosenRows(pool, _some(np.arange(len(pool)), seed)), None
    parts = [queries for _, _, queries in curated_queries(curation, "sample")]
    return ChosenRows(parts[0].vectors, _some(np.concatenate([part.rows for part in parts]), seed)), None


def _some(rows: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.sort(generator.choice(rows, min(SAMPLED_QUERIES, len(rows)), replace=False))
