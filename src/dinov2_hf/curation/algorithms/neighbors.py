"""The nearest neighbours of every row by cosine, with faiss.

Small pools are searched exhaustively. Larger ones take an inverted file over product-quantised vectors behind a
learned rotation (IVF, PQ and OPQ), whose candidates are ranked again by the exact similarity: quantised similarities
are biased, and the thresholds of deduplication mean exact ones (paper, appendix A: faiss with inverted file and
product quantisation; its sizes are not published).

An index is trained once, filled shard by shard, merged, and searched by ranges of queries, so that each step can be a
task of its own. Vectors enter an inverted file with their row as their id; an `IndexIDMap` around one is not needed,
and its ids do not survive a merge.

Shapes: `n` rows of the pool, `q` queries, `k` neighbours, `D` width.
"""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np

from ...atomic_files import new_file
from ...progress import Progress
from .faiss_gpus import GPU_CODES, MOST_CANDIDATES, on_gpus
from .unit_vectors import UnitVectors, row_blocks


# Exhaustive search of 50,000 rows by all of them is 1.3e12 multiplications at a width of 512, about a minute of one
# core and as much as learning an index; from here on it grows with the square.
FLAT_ROWS = 50_000
TESTED_FACTORIES = (
    r"Flat",
    r"IVF\d+,Flat",
    r"OPQ\d+_\d+,IVF\d+(_HNSW32)?,PQ\d+(x4fs|np)",  # four bits, and eight without the slow polysemous training
)
_QUERY_ROWS = 4096  # exhaustive search in blocks of 1,024 took 1.8 times as long
_MIN_CANDIDATES = 128
_PAIRS_AT_ONCE = 2048  # 4 MiB of a width of 512 in single precision, for each thread: 1.3 times faster than 16 MiB


@dataclass(frozen=True)
class IndexSettings:
    """How a pool is searched.

    Attributes:
        factory: the faiss string; one of `TESTED_FACTORIES`.
        num_probes: inverted lists that a query visits; None: a quarter of them, but at least 64 and at most 256.
        candidates_per_neighbor: quantised candidates that are ranked again for each neighbour asked for.
    """

    factory: str
    num_probes: int | None = None
    candidates_per_neighbor: int = 8  # with 256 lists, 0.99 of 64 neighbours where all have a cosine above 0.5

    def __post_init__(self):
        if not any(re.fullmatch(pattern, self.factory) for pattern in TESTED_FACTORIES):
            raise ValueError(
                f"index {self.factory!r} is not among the tested forms: Flat, IVF4096,Flat, "
                "OPQ128_512,IVF4096,PQ128x4fs (four bits), OPQ64_512,IVF4096,PQ64np (eight bits), each IVF also as "
                "IVF262144_HNSW32."
            )
        found = re.match(r"OPQ(\d+)_(\d+),.*,PQ(\d+)", self.factory)
        if found and (found[1] != found[3] or int(found[2]) % int(found[1])):
            raise ValueError(
                f"index {self.factory!r} must have as many codes after OPQ as after PQ, and a width after _ that they"
                f" divide, as in OPQ{found[3]}_{8 * int(found[3])},...,PQ{found[3]}."
            )
        if self.num_probes is None:
            object.__setattr__(self, "num_probes", min(max(self.num_lists // 4, 64), 256))
        if self.num_probes < 1 or self.candidates_per_neighbor < 1:
            raise ValueError(
                f"num_probes={self.num_probes} and candidates_per_neighbor={self.candidates_per_neighbor} must be "
                "at least 1."
            )

    @property
    def num_lists(self) -> int:
        found = re.search(r"IVF(\d+)", self.factory)
        return int(found[1]) if found else 0

    @property
    def is_exact(self) -> bool:
        """Whether the similarities of the index itself are exact."""
        return self.factory.endswith("Flat")


def choose_index(num_rows: int, width: int, memory_bytes: float = 8e9, *, for_gpus: bool = False) -> IndexSettings:
    """The index for a pool of this size.

    Args:
        num_rows, width: of the pool.
        memory_bytes: what the filled index may take in one process; of one that sees several GPUs, on all of them.
        for_gpus: choose a form that faiss has on GPUs; it can also be searched without.

    Returns:
        Exhaustive search up to `FLAT_ROWS`; above, about 2 sqrt(n) lists of four-bit codes, one for 4
        dimensions of a vector, or for 8, 16 or 32 where memory is short. (4 to 16 sqrt(n) are usual for eight-bit
        codes, whose scan costs more beside finding the lists.) For GPUs eight-bit codes, one for 8, 16 or 32
        dimensions or somewhat more, in numbers of `GPU_CODES`.

    Raises:
        ValueError: nothing fits.
    """
    if num_rows <= FLAT_ROWS and num_rows * width * 4 <= memory_bytes:
        return IndexSettings("Flat")
    num_lists = 2 ** round(np.log2(2 * max(num_rows, 1) ** 0.5))
    while num_lists > 1 and num_lists * 39 > num_rows:  # the fewest training points for a centroid, says faiss
        num_lists //= 2
    # From 2^17 lists on, a CPU finds the lists of a vector by a graph search.
    coarse = f"IVF{num_lists}" + ("_HNSW32" if num_lists >= 2**17 and not for_gpus else "")
    for dims_per_code in (8, 16, 32) if for_gpus else (4, 8, 16, 32):
        num_codes = width // dims_per_code // 2 * 2
        if for_gpus:
            num_codes = max((count for count in GPU_CODES if count <= width // dims_per_code), default=0)
        bytes_of_row = (num_codes if for_gpus else num_codes / 2) + 8
        if num_codes and num_rows * bytes_of_row + num_lists * width * 4 <= memory_bytes:
            rotation = f"OPQ{num_codes}_{num_codes * (width // num_codes)}"
            return IndexSettings(f"{rotation},{coarse},PQ{num_codes}{'np' if for_gpus else 'x4fs'}")
    smallest = num_rows * (width / (32 if for_gpus else 64) + 8)
    raise ValueError(
        f"memory_bytes={memory_bytes:.3g} holds no index of {num_rows} vectors of width {width}, whose smallest takes "
        f"{smallest:.3g}: give more memory, or search the pool in parts."
    )


@dataclass(frozen=True)
class Neighbors:
    """The most similar rows of each query, best first.

    Attributes:
        rows: (q, k) int64 rows of the pool; -1 where there are fewer.
        similarities: (q, k) float32 exact cosines; -inf where there are fewer.
    """

    rows: np.ndarray
    similarities: np.ndarray


def train_index(
    vectors: UnitVectors,
    settings: IndexSettings,
    *,
    seed: int = 0,
    training_rows: int | None = None,
    gpus: Sequence[int] = (),
) -> faiss.Index:
    """An empty index, its centroids and codes learned from a sample of the pool.

    Args:
        vectors: the pool.
        settings: from `choose_index` or a user.
        seed: of the sample.
        training_rows: of the sample; 40 for each list, at least 65,536, where None.
        gpus: that the centroids of the lists are learned on, from `gpus_for_faiss`; the codes are learned on the CPU.

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
        # Of fewer rows than dimensions faiss's rotation writes beyond its memory; codes need one for each value.
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
        # Learned for the codes that follow: by itself faiss takes eight bits, 16 times the work of four.
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

    On GPUs it is filled in the first of them, where its form allows, and comes back in its CPU form.

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
    skip_self: bool = False,
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
            first, has none above, which spares most of the reading where near copies are rare.
        skip_self: the queries are the pool, and a row is no neighbour of its own.
        gpus: from `gpus_for_faiss`; the index is shared out between them, where its form allows and at most
            `MOST_CANDIDATES` are asked for.

    Raises:
        ValueError: widths differ, the pool has fewer than `k` (other) rows, the index does not hold the pool, or
            `floor` is outside [-1, 1].
    """
    stop = len(queries) if stop is None else stop
    _check_search(index, pool, queries, k, floor, skip_self)
    num_candidates = k + skip_self if settings.is_exact else max(k * settings.candidates_per_neighbor, _MIN_CANDIDATES)
    num_candidates = min(num_candidates, len(pool))
    num_probes = settings.num_probes or 1
    if settings.num_lists:
        faiss.extract_index_ivf(index).nprobe = min(num_probes, settings.num_lists)
    if max(num_candidates, num_probes) <= MOST_CANDIDATES:
        index = on_gpus(index, gpus, split=True)
    rows = np.full((stop - start, k), -1, np.int64)
    similarities = np.full((stop - start, k), -np.inf, np.float32)
    with Progress(total=stop - start, unit="row", desc="Search", disable=not progress) as bar:
        for first, end in row_blocks(start, stop, _QUERY_ROWS):
            block = queries.read(first, end)
            scores, candidates = index.search(block, num_candidates)
            known = candidates >= 0
            if skip_self:
                known &= candidates != np.arange(first, end)[:, None]
            if settings.is_exact:
                exact = np.where(known & (scores >= floor), scores, -np.inf)
            else:
                exact = _exact_similarities(pool, block, candidates, known, floor, first_round=max(k // 4, 8))
            place = slice(first - start, end - start)
            rows[place], similarities[place] = _best(candidates, exact, k)
            bar.update(end - first)
    return Neighbors(rows, similarities)


def _check_search(index, pool, queries, k, floor, skip_self) -> None:
    if queries.width != pool.width:
        raise ValueError(
            f"queries have width {queries.width}, but the pool has {pool.width}: embed both with one model."
        )
    if not 1 <= k <= len(pool) - skip_self:
        raise ValueError(
            f"k={k} neighbours are asked for, but the pool has {len(pool) - skip_self} "
            f"{'other ' if skip_self else ''}rows: k must be between 1 and that."
        )
    if index.ntotal != len(pool):
        raise ValueError(f"the index holds {index.ntotal} rows, but the pool has {len(pool)}: make the index again.")
    if not -1 <= floor <= 1:
        raise ValueError(f"floor={floor} must be a cosine similarity, in [-1, 1].")


def _exact_similarities(pool, queries, candidates, known, floor, first_round) -> np.ndarray:
    """(queries, candidates) exact cosines, -inf for those unknown, given up, or below the floor."""

    def similarities_of(going_on: np.ndarray) -> np.ndarray:
        rows = np.where(known[going_on, begin:end], candidates[going_on, begin:end], 0)
        vectors = pool.take(rows.ravel()).reshape(*rows.shape, -1)
        return np.einsum("qcd,qd->qc", vectors, queries[going_on])

    exact = np.full(candidates.shape, -np.inf, np.float32)
    going_on = np.arange(len(queries))
    begin, end = 0, first_round if floor > -1 else candidates.shape[1]
    with ThreadPoolExecutor(faiss.omp_get_max_threads()) as threads:
        while begin < candidates.shape[1] and len(going_on):
            end = min(end, candidates.shape[1])
            blocks = row_blocks(0, len(going_on), max(1, _PAIRS_AT_ONCE // (end - begin)))
            found = np.concatenate(list(threads.map(similarities_of, [going_on[slice(*block)] for block in blocks])))
            found[(found < floor) | ~known[going_on, begin:end]] = -np.inf
            exact[going_on, begin:end] = found
            going_on = going_on[(found > -np.inf).any(axis=1)]
            begin, end = end, 3 * end - 2 * begin  # twice as many as in this round
    return exact


def _best(candidates: np.ndarray, similarities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar candidates of each query in falling order, among equals the smallest row first."""
    rows = np.full((len(candidates), k), -1, np.int64)
    best = np.full((len(candidates), k), -np.inf, np.float32)
    some = np.flatnonzero((similarities > -np.inf).any(axis=1))  # few queries, where there is a floor
    candidates, similarities = candidates[some], similarities[some]
    order = np.lexsort((candidates, -similarities))[:, :k]
    best[some] = np.take_along_axis(similarities, order, axis=1)
    rows[some] = np.where(best[some] > -np.inf, np.take_along_axis(candidates, order, axis=1), -1)
    return rows, best


def save_index(index: faiss.Index, path: str | os.PathLike) -> None:
    """Write an index whole or not at all."""
    with new_file(path, overwrite=True) as partial:
        faiss.write_index(index, str(partial))


def load_index(path: str | os.PathLike) -> faiss.Index:
    """Read what `save_index` wrote; raises ValueError where it is missing or damaged."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} is no readable faiss index: make it again.") from error
