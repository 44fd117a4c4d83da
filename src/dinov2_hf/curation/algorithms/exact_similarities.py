"""Exact cosines of the candidates that a quantised index finds, with the vectors where they lie.

A row that several queries of a block have among their candidates is read once, and rows are read in rising order.

Shapes: `q` queries, `c` candidates, `D` width.
"""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import torch

from .unit_vectors import UnitVectors, row_blocks


_PAIRS_AT_ONCE = 2**19  # of all threads together; at most 0.5 GB of a width of 512 in half precision
_ROWS_IN_CACHE = 256  # 0.5 MB of a width of 512 in single precision
_QUERIES_OF_ROW = 4


def exact_similarities(
    pool: UnitVectors, queries: np.ndarray, candidates: np.ndarray, known: np.ndarray, *, floor: float = -1.0,
    first_round: int = 16,
) -> np.ndarray:  # fmt: skip
    """The cosines of queries and their candidates.

    Args:
        queries: (q, D) float32 of unit length.
        candidates: (q, c) rows of the pool, the best first.
        known: (q, c) bool: which of them count.
        floor: above -1, candidates are looked at in rounds, each of twice as many, and a query is given up when a
            round of its candidates has none from there on, which spares most of the reading where near copies are
            rare.
        first_round: candidates of the first round.

    Returns:
        (q, c) float32; -inf for those that do not count, were given up, or are below the floor.
    """
    exact = np.full(candidates.shape, -np.inf, np.float32)
    going_on, num_threads = np.arange(len(queries)), faiss.omp_get_max_threads()
    begin, end = 0, first_round if floor > -1 else candidates.shape[1]
    # Threads of faiss would come on top of these.
    with ThreadPoolExecutor(num_threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as threads:
        while begin < candidates.shape[1] and len(going_on):
            end = min(end, candidates.shape[1])
            columns, rows = slice(begin, end), min(_PAIRS_AT_ONCE // (end - begin), len(going_on)) // num_threads
            parts = [going_on[first:last] for first, last in row_blocks(0, len(going_on), max(rows, 1))]

            def cosines_of(part: np.ndarray, columns: slice = columns) -> np.ndarray:
                return _cosines(pool, queries[part], candidates[part, columns], known[part, columns])

            found = np.concatenate(list(threads.map(cosines_of, parts)))
            found[found < floor] = -np.inf
            exact[going_on, columns] = found
            going_on = going_on[(found > -np.inf).any(axis=1)]
            begin, end = end, 3 * end - 2 * begin
    return exact


def _cosines(pool: UnitVectors, queries: np.ndarray, candidates: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(q, c) float32 cosines of some queries and all of their candidates; -inf for those that are not known."""
    found = np.full(candidates.size, -np.inf, np.float32)
    pairs = np.flatnonzero(known)
    pairs = pairs[np.argsort(candidates.ravel()[pairs])]
    row_of_pair = candidates.ravel()[pairs]
    begins = np.flatnonzero(np.diff(row_of_pair, prepend=-1))
    stored = pool.take_as_stored(row_of_pair[begins])

    # A row with more queries than `_QUERIES_OF_ROW` is repeated: faiss takes as many of each.
    counts = np.diff(begins, append=len(pairs))
    place = np.arange(len(pairs)) - np.repeat(begins, counts)
    repeats = -(-counts // _QUERIES_OF_ROW)
    repeated = np.repeat(np.arange(len(begins)), repeats)
    line_of_pair = np.repeat(np.cumsum(repeats) - repeats, counts) + place // _QUERIES_OF_ROW
    asking = np.full((len(repeated), _QUERIES_OF_ROW), -1, np.int64)
    asking[line_of_pair, place % _QUERIES_OF_ROW] = pairs // candidates.shape[1]
    cosines = np.empty(asking.shape, np.float32)
    for first, end in row_blocks(0, len(repeated), _ROWS_IN_CACHE):
        some = torch.from_numpy(np.take(stored, repeated[first:end], axis=0, mode="clip")).float().numpy()
        squares = np.empty((end - first, 1), np.float32)
        faiss.fvec_norms_L2sqr(faiss.swig_ptr(squares), faiss.swig_ptr(some), pool.width, end - first)
        # One pair after the other: matrix products round differently where there are more rows or fewer.
        pointers = (faiss.swig_ptr(array) for array in (cosines[first:end], some, queries, asking[first:end]))
        faiss.fvec_inner_products_by_idx(*pointers, pool.width, end - first, _QUERIES_OF_ROW)
        cosines[first:end] /= np.sqrt(squares)
    found[pairs] = cosines[line_of_pair, place % _QUERIES_OF_ROW]
    return found.reshape(candidates.shape)
