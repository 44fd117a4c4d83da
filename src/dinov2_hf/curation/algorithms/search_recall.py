"""How much of an index a query must look at to find the share of its neighbours that is asked for.

This depends on the vectors more than on their number, so it is measured. The neighbours of a sample of queries are
found exhaustively, and then by the index with more and more of its lists and candidates.

Shapes: `q` queries of the sample, `k` neighbours, `c` candidates.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from .exact_similarities import exact_similarities
from .faiss_gpus import MOST_CANDIDATES, on_gpus
from .index_settings import IndexSettings
from .neighbors import Neighbors, ready_to_search, search
from .unit_vectors import UnitVectors, row_blocks


SAMPLED_QUERIES = 1000
FEWEST_PAIRS = 100
FEWEST_CANDIDATES = 256  # to begin with
# Of a cosine: if two rows are equally near to a query, either counts as its k-th neighbour.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recall:
    """The share of the true neighbours that a search finds.

    Attributes:
        asked, measured: in [0, 1].
        pairs: the number of pairs of a query and its neighbour that were looked for.
        queries: the number of queries in the sample.
    """

    asked: float
    measured: float
    pairs: int
    queries: int


def exact_neighbors(
    pool: UnitVectors, queries: np.ndarray, k: int, start: int, stop: int, *, gpus: Sequence[int] = ()
) -> Neighbors:
    """The `k` nearest rows among those from `start` to `stop`; each query is compared with all of them."""
    flat = on_gpus(faiss.IndexFlatIP(pool.width), gpus[:1])
    nearest = faiss.ResultHeap(len(queries), k, keep_max=True)
    for first, end in row_blocks(start, stop):
        flat.add(pool.read(first, end))
        similarities, rows = flat.search(queries, k)
        nearest.add_result(similarities, np.where(rows < 0, -1, rows + first))
        flat.reset()
    nearest.finalize()
    return Neighbors(nearest.I, np.where(nearest.I < 0, -np.inf, nearest.D).astype(np.float32))


def without_own_rows(neighbors: Neighbors, own_rows: np.ndarray) -> Neighbors:
    """The neighbours without one for each query: the query's own row, or the last one if that is not among them."""
    is_own = neighbors.rows == own_rows[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    shape = (len(is_own), is_own.shape[1] - 1)
    return Neighbors(neighbors.rows[~is_own].reshape(shape), neighbors.similarities[~is_own].reshape(shape))


@dataclass(frozen=True)
class Sample:
    """Queries whose neighbours are known.

    Attributes:
        queries: of unit length.
        truth: (q, k) their neighbours.
        own_rows: (q,) which rows of the pool the queries are; a row is not its own neighbour. None: the queries are
            not in the pool.
    """

    queries: UnitVectors
    truth: Neighbors
    own_rows: np.ndarray | None = None

    def lowest(self, floor: float) -> float:
        """The similarity from which neighbours are to be found: a floor, or less if fewer than `FEWEST_PAIRS` pairs
        are above it, since so few say little."""
        known = np.sort(self.truth.similarities[self.truth.rows >= 0])[::-1][:FEWEST_PAIRS]
        return floor if not len(known) else min(floor, float(known[-1]))


def reach_recall(
    index: faiss.Index,
    pool: UnitVectors,
    sample: Sample,
    settings: IndexSettings,
    asked: float,
    *,
    floor: float = -1.0,
    fixed_probes: bool = False,
    gpus: Sequence[int] = (),
) -> tuple[IndexSettings, Recall]:
    """The smallest part of an index that a query must look at.

    Half of the neighbours that may be missed are allowed for lists that are not visited, and a quarter for candidates
    that are not ranked again. A quarter is left for queries that are given up, and for the difference between the
    sample and other queries.

    Args:
        index: holds the whole pool.
        sample: queries with their neighbours.
        settings: with which the index was made.
        asked: the share of the neighbours that a search must find.
        floor: that of the search; only neighbours above it count.
        fixed_probes: visit as many lists as `settings` say.

    Returns:
        The settings to search with, and what they find of the sample. If no number of lists and candidates is enough,
        the recall is lower than what was asked for.
    """
    floor = sample.lowest(floor)
    counted = (sample.truth.rows >= 0) & (sample.truth.similarities >= floor)
    probes = [settings.num_probes or 1] if fixed_probes else list(_numbers_of_lists(settings.num_lists))
    most = max(16 * counted.shape[1], FEWEST_CANDIDATES)
    while True:
        chosen, is_enough = _least(index, pool, sample, settings, counted, asked, probes, most, gpus)
        if is_enough or fixed_probes or settings.is_exact or most >= min(MOST_CANDIDATES, len(pool)):
            break
        most *= 2
    k = counted.shape[1]
    recall = _measured(index, pool, sample, chosen, asked, counted, floor, gpus)
    while recall.measured < asked and floor > -1 and chosen.first_candidates(k) < (chosen.num_candidates or 0):
        chosen = dataclasses.replace(chosen, first_round=2 * chosen.first_candidates(k))
        recall = _measured(index, pool, sample, chosen, asked, counted, floor, gpus)
    return chosen, recall


def _least(
    index: faiss.Index, pool: UnitVectors, sample: Sample, settings: IndexSettings, counted: np.ndarray, asked: float,
    probes: list[int], most: int, gpus: Sequence[int],
) -> tuple[IndexSettings, bool]:  # fmt: skip
    """The fewest lists, and then the fewest candidates, that are enough; and whether they are enough."""
    curves: dict[int, np.ndarray] = {}

    def found_share(place: int) -> float:
        tried = dataclasses.replace(settings, num_probes=probes[place], num_candidates=most)
        curves[place] = _found_by_candidates(index, pool, sample, tried, counted, gpus)
        return curves[place][-1]

    low, high = 0, len(probes) - 1  # more lists never find less
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if found_share(middle) >= 1 - (1 - asked) / 2 else (middle + 1, high)
    if low not in curves:
        found_share(low)
    curve, goal = curves[low], 1 - 0.75 * (1 - asked)
    # If the lists miss too many, more candidates do not make up for it.
    enough = int(np.argmax(curve >= min(goal, curve[-1] * (1 - 0.25 * (1 - asked))))) + 1
    num_candidates = None if settings.is_exact else _in_steps(enough)
    return dataclasses.replace(settings, num_probes=probes[low], num_candidates=num_candidates), curve[-1] >= goal


def _in_steps(count: int) -> int:
    """The next of 16, 19, 23, 27, 32, ..., so that a sample that differs a little does not change a search."""
    return next(step for exponent in range(64) if (step := round(16 * 2 ** (exponent / 4))) >= count)


def _numbers_of_lists(num_lists: int) -> Iterator[int]:
    """16, 23, 32, 45, 64, ..., and all."""
    for step in range(64):
        count = round(16 * 2 ** (step / 2))
        if count >= num_lists:
            break
        yield count
    yield num_lists


def _lowest_counted(sample: Sample, counted: np.ndarray) -> np.ndarray:
    """(q, 1) the similarity from which a row counts as a neighbour of a query."""
    lowest = np.where(counted, sample.truth.similarities, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    return lowest - TOLERANCE


def _found_by_candidates(
    index: faiss.Index, pool: UnitVectors, sample: Sample, settings: IndexSettings, counted: np.ndarray,
    gpus: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """(c,) float64: the share of the counted neighbours among the first 1, 2, ..., c candidates of the index."""
    most = min(settings.candidates(counted.shape[1] + 1), MOST_CANDIDATES, len(pool))
    queries = sample.queries.read(0, len(sample.queries))
    scores, rows = ready_to_search(index, settings, most, gpus).search(queries, most)
    known = rows >= 0
    if sample.own_rows is not None:
        known &= rows != sample.own_rows[:, None]
    exact = np.where(known, scores, -np.inf) if settings.is_exact else exact_similarities(pool, queries, rows, known)
    wanted = counted.sum(axis=1)
    found = np.minimum((exact >= _lowest_counted(sample, counted)).cumsum(axis=1), wanted[:, None])
    return found.sum(axis=0) / max(wanted.sum(), 1)


def _measured(
    index: faiss.Index, pool: UnitVectors, sample: Sample, settings: IndexSettings, asked: float,
    counted: np.ndarray, floor: float, gpus: Sequence[int],
) -> Recall:  # fmt: skip
    """The recall of the search itself."""
    k = counted.shape[1]
    found = search(index, pool, sample.queries, k, settings, floor=floor, own_rows=sample.own_rows, gpus=gpus)
    wanted = counted.sum(axis=1)
    hits = np.minimum((found.similarities >= _lowest_counted(sample, counted)).sum(axis=1), wanted).sum()
    measured = round(float(hits / max(wanted.sum(), 1)), 4)
    return Recall(asked, measured, int(wanted.sum()), len(wanted))
