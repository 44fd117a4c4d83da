"""The nearest neighbours of every row by cosine, with faiss.

Small pools are searched exhaustively. Larger ones use an inverted file over product-quantised vectors behind a learned
rotation (IVF, PQ and OPQ). Its candidates are ranked again by the exact similarity: quantised similarities are biased,
and the thresholds of deduplication mean exact ones (paper, appendix A: faiss with inverted file and product
quantisation; its sizes are not published).

An index is trained once, filled shard by shard, merged, and searched by ranges of queries, so that each step can be a
task of its own. Vectors enter an inverted file with their row as their id. An `IndexIDMap` around it is not needed,
and its ids would not survive a merge.

Shapes: `n` rows of the pool, `q` queries, `k` neighbours, `D` width.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from ...atomic_files import new_file
from ...progress import Progress
from .exact_similarities import exact_similarities
from .faiss_gpus import MOST_CANDIDATES, on_gpus
from .index_settings import IndexSettings, choose_index
from .unit_vectors import UnitVectors, row_blocks


_QUERY_ROWS = 4096  # exhaustive search in blocks of 1,024 took 1.8 times as long


@dataclass(frozen=True)
class Neighbors:
    """The most similar rows of each query, best first.

    Attributes:
        rows: (q, k) int64 rows of the pool; -1 in the places of a query with fewer neighbours.
        similarities: (q, k) float32 exact cosines; -inf in these places.
    """

    rows: np.ndarray
    similarities: np.ndarray

    def in_a_whole(self, first: int) -> "Neighbors":
        """The same neighbours in rows of the whole pool, of which the part from row `first` on was searched."""
        return Neighbors(np.where(self.rows < 0, -1, self.rows + first), self.similarities)


def nearest_of_parts(parts: Sequence[Neighbors], k: int) -> Neighbors:
    """The `k` nearest of the neighbours that were found in the parts of a pool, the best first; fewer if the parts
    together have fewer."""
    rows = np.concatenate([part.rows for part in parts], axis=1)
    similarities = np.concatenate([part.similarities for part in parts], axis=1)
    order = np.lexsort((rows, -similarities))[:, :k]
    return Neighbors(*(np.take_along_axis(array, order, axis=1) for array in (rows, similarities)))


def train_index(
    vectors: UnitVectors,
    settings: IndexSettings,
    *,
    seed: int = 0,
    training_rows: int | None = None,
    gpus: Sequence[int] = (),
) -> faiss.Index:
    """An empty index, whose centroids and codes are learned from a sample of the pool.

    Args:
        vectors: the pool.
        settings: from `choose_index` or a user.
        seed: of the sample.
        training_rows: the size of the sample; None: 40 for each list, and at least 65,536.
        gpus: the GPUs on which the centroids of the lists are learned, from `gpus_for_faiss`; the codes are learned on
            the CPU.

    Raises:
        ValueError: the pool, or the sample, has fewer rows than the index has lists, dimensions, or values of a code.
    """
    index = faiss.index_factory(vectors.width, settings.factory, faiss.METRIC_INNER_PRODUCT)
    if index.is_trained:
        return index
    if training_rows is None:
        training_rows = max(40 * settings.num_lists, 65_536)  # faiss warns below 39
    training_rows = min(training_rows, len(vectors))
    least = settings.num_lists
    codes = faiss.downcast_index(index.index).pq if isinstance(index, faiss.IndexPreTransform) else None
    if codes is not None:
        # With fewer rows than dimensions, faiss's rotation writes beyond its memory; codes need one for each value.
        least = max(least, codes.d, 2**codes.nbits)
    if training_rows < least:
        raise ValueError(
            f"index {settings.factory!r} is learned from at least {least} rows, but there are {training_rows}: use a"
            " smaller index, or Flat."
        )
    chosen = np.random.default_rng(seed).choice(len(vectors), training_rows, replace=False)
    lists = faiss.extract_index_ivf(index)
    if gpus:
        lists_on_gpus = on_gpus(faiss.IndexFlatIP(lists.d), gpus)
        lists.clustering_index = lists_on_gpus
    if codes is not None:
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        # It is learned for the codes that follow: by itself faiss takes eight bits, 16 times the work of four.
        rotation_codes = faiss.ProductQuantizer(codes.d, codes.M, codes.nbits)
        rotation.pq = rotation_codes
        rotation.niter, rotation.niter_pq_0, rotation.max_train_points = 5, 10, 16_384
    index.train(vectors.take(np.sort(chosen)))
    if codes is not None:
        rotation.pq = None  # it belongs to Python
    if gpus:
        lists.clustering_index = None  # likewise
    return index


def add_rows(
    trained: faiss.Index,
    vectors: UnitVectors,
    start: int = 0,
    stop: int | None = None,
    *,
    gpus: Sequence[int] = (),
    progress: bool = False,
) -> faiss.Index:
    """A copy of a trained empty index with the rows `start` to `stop` in it.

    If its form allows, it is filled on the first of the GPUs. It comes back in its CPU form.

    Raises:
        ValueError: `trained` already holds rows.
    """
    if trained.ntotal:
        raise ValueError(f"the index to fill holds {trained.ntotal} rows, but must be trained and empty.")
    stop = len(vectors) if stop is None else stop
    index = on_gpus(trained, gpus[:1])
    is_on_gpu = index is not trained
    if not is_on_gpu:
        index = faiss.clone_index(trained)
    with Progress(total=stop - start, unit="row", desc="Index", disable=not progress) as bar:
        for first, end in row_blocks(start, stop):
            block = vectors.read(first, end)
            if isinstance(trained, faiss.IndexFlat):
                index.add(block)
            else:
                index.add_with_ids(block, np.arange(first, end))
            bar.update(end - first)
    return faiss.index_gpu_to_cpu(index) if is_on_gpu else index


def merge_indexes(indexes: Iterable[faiss.Index], num_rows: int) -> faiss.Index:
    """One index of the parts of a pool, given in the order of their rows; the parts are emptied.

    Args:
        indexes: made by `add_rows` from one trained index; an iterator keeps only two of them in memory.
        num_rows: of the pool.

    Raises:
        ValueError: there are no parts, or together they do not hold `num_rows`.
    """
    merged = None
    for index in indexes:
        if merged is None:
            merged = index
        elif isinstance(index, faiss.IndexFlat):
            merged.merge_from(index)
        else:
            faiss.merge_into(merged, index, False)  # False: ids are kept, not counted on
    found = 0 if merged is None else merged.ntotal
    if merged is None or found != num_rows:
        raise ValueError(f"the parts of the index hold {found} rows, but the pool has {num_rows}: a part is missing.")
    return merged


def build_index(
    vectors: UnitVectors,
    settings: IndexSettings | None = None,
    *,
    seed: int = 0,
    gpus: Sequence[int] = (),
    progress: bool = False,
) -> faiss.Index:
    """Train and fill in one process: `train_index` and `add_rows`."""
    settings = settings or choose_index(len(vectors), vectors.width, for_gpus=bool(gpus))
    return add_rows(train_index(vectors, settings, seed=seed, gpus=gpus), vectors, gpus=gpus, progress=progress)


def search(
    index: faiss.Index,
    pool: UnitVectors,
    queries: UnitVectors,
    k: int,
    settings: IndexSettings,
    *,
    start: int = 0,
    stop: int | None = None,
    floor: float = -1.0,
    own_rows: np.ndarray | None = None,
    gpus: Sequence[int] = (),
    progress: bool = False,
) -> Neighbors:
    """The `k` nearest rows of the pool for the queries `start` to `stop`, by exact similarity.

    Args:
        index: holds the whole pool.
        pool: the vectors in the index, read again for the exact similarities.
        queries: the pool itself or other vectors of its width.
        k: neighbours of a query.
        settings: with which the index was made.
        start, stop: the range of queries, so that a search can be shared between tasks.
        floor: neighbours below this similarity are left out. A query is given up when a round of its candidates, best
            first, has none above the floor. This spares most of the reading if near copies are rare.
        own_rows: (len(queries),) which rows of the pool the queries are; a row is not its own neighbour. None: the
            queries are not in the pool.
        gpus: from `gpus_for_faiss`; they share the index, if its form allows and at most `MOST_CANDIDATES` are asked
            for.

    Raises:
        ValueError: widths differ, the pool has fewer than `k` (other) rows, the index does not hold the pool, or
            `floor` is outside [-1, 1].
    """
    stop = len(queries) if stop is None else stop
    is_own = own_rows is not None
    _check_search(index, pool, queries, k, floor, is_own)
    num_candidates = min(settings.candidates(k + is_own), len(pool))
    index = ready_to_search(index, settings, num_candidates, gpus)
    rows = np.full((stop - start, k), -1, np.int64)
    similarities = np.full((stop - start, k), -np.inf, np.float32)
    with Progress(total=stop - start, unit="row", desc="Search", disable=not progress) as bar:
        for first, end in row_blocks(start, stop, _QUERY_ROWS):
            block = queries.read(first, end)
            scores, candidates = index.search(block, num_candidates)
            known = candidates >= 0
            if own_rows is not None:
                known &= candidates != own_rows[first:end, None]
            if settings.is_exact:
                exact = np.where(known & (scores >= floor), scores, -np.inf)
            else:
                exact = exact_similarities(
                    pool, block, candidates, known, floor=floor, first_round=settings.first_candidates(k)
                )
            place = slice(first - start, end - start)
            rows[place], similarities[place] = _best(candidates, exact, k)
            bar.update(end - first)
    return Neighbors(rows, similarities)


def ready_to_search(
    index: faiss.Index, settings: IndexSettings, num_candidates: int, gpus: Sequence[int] = ()
) -> faiss.Index:
    """The index, with the number of lists to visit set; a copy on GPUs, if there are any and they can search it for so
    many candidates."""
    num_probes = settings.num_probes or 1
    if settings.num_lists:
        faiss.extract_index_ivf(index).nprobe = min(num_probes, settings.num_lists)
    if max(num_candidates, num_probes) <= MOST_CANDIDATES:
        return on_gpus(index, gpus, split=True)
    return index


def _check_search(index, pool, queries, k, floor, is_own) -> None:
    if queries.width != pool.width:
        raise ValueError(
            f"queries have width {queries.width}, but the pool has {pool.width}: embed both with one model."
        )
    if not 1 <= k <= len(pool) - is_own:
        raise ValueError(
            f"k={k} neighbours are asked for, but the pool has {len(pool) - is_own} "
            f"{'other ' if is_own else ''}rows: k must be between 1 and that."
        )
    if index.ntotal != len(pool):
        raise ValueError(f"the index holds {index.ntotal} rows, but the pool has {len(pool)}: make the index again.")
    if not -1 <= floor <= 1:
        raise ValueError(f"floor={floor} must be a cosine similarity, in [-1, 1].")


def _best(candidates: np.ndarray, similarities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar candidates of each query in falling order; among equals the smallest row comes first."""
    rows = np.full((len(candidates), k), -1, np.int64)
    best = np.full((len(candidates), k), -np.inf, np.float32)
    some = np.flatnonzero((similarities > -np.inf).any(axis=1))  # few queries, if there is a floor
    candidates, similarities = candidates[some], similarities[some]
    order = np.argpartition(-similarities, min(k, candidates.shape[1]) - 1, axis=1)[:, :k]
    last = np.take_along_axis(similarities, order, axis=1).min(axis=1, keepdims=True, initial=np.inf)
    # If the k-th place separates equals, the partition takes any of them.
    parted = np.flatnonzero(((similarities >= last).sum(axis=1) > k) & (last[:, 0] > -np.inf))
    order[parted] = np.lexsort((candidates[parted], -similarities[parted]))[:, :k]
    candidates, similarities = (np.take_along_axis(array, order, axis=1) for array in (candidates, similarities))
    order = np.lexsort((candidates, -similarities))
    best[some, : order.shape[1]] = np.take_along_axis(similarities, order, axis=1)
    rows[some, : order.shape[1]] = np.take_along_axis(candidates, order, axis=1)
    rows[best == -np.inf] = -1
    return rows, best


def save_index(index: faiss.Index, path: str | os.PathLike) -> None:
    """Write an index, whole or not at all."""
    with new_file(path, overwrite=True) as partial:
        faiss.write_index(index, str(partial))


def load_index(path: str | os.PathLike) -> faiss.Index:
    """Read what `save_index` wrote; raises ValueError if it is missing or damaged."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} is not a readable faiss index: make it again.") from error
