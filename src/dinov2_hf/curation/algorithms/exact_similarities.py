"""Exact cosines of the candidates that a quantised index finds, with the vectors where they lie.

Pairs of a query and a candidate are sorted by the row of the candidate. So a row that many queries have among their
candidates is read once, and rows are read in rising order, as many at a time as a cache holds.

Shapes: `q` queries, `c` candidates, `D` width.
"""

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import torch

from .unit_vectors import UnitVectors, row_blocks


_PAIRS_AT_ONCE = 2**21  # 50 MB of numbers about them; with fewer, rows are read again for other queries
_ROWS_IN_CACHE = 1024  # 2 MB of a width of 512 in single precision


def exact_similarities(
    pool: UnitVectors, queries: np.ndarray, candidates: np.ndarray, known: np.ndarray, *, floor: float = -1.0,
    first_round: int = 16,
) -> np.ndarray:  # fmt: skip
    """The cosines of queries and their candidates.

    Args:
        queries: (q, D) float32 of unit length.
        candidates: (q, c) rows of the pool, the best first.
        known: (q, c) bool: which of them count.
        floor: if it is above -1, candidates are looked at in rounds, each of twice as many as before. A query is given
            up when no candidate of a round reaches the floor. This spares most of the reading if near copies are rare.
        first_round: candidates of the first round.

    Returns:
        (q, c) float32; -inf for those that do not count, were given up, or are below the floor.
    """
    exact = np.full(candidates.shape, -np.inf, np.float32)
    going_on = np.arange(len(queries))
    begin, end = 0, first_round if floor > -1 else candidates.shape[1]
    # Threads of faiss would come on top of these.
    num_threads = faiss.omp_get_max_threads()
    with ThreadPoolExecutor(num_threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as threads:
        while begin < candidates.shape[1] and len(going_on):
            end = min(end, candidates.shape[1])
            columns, still = slice(begin, end), []
            for first, last in row_blocks(0, len(going_on), max(_PAIRS_AT_ONCE // (end - begin), 1)):
                part = going_on[first:last]
                found = _cosines(pool, queries[part], candidates[part, columns], known[part, columns], threads)
                found[found < floor] = -np.inf
                exact[part, columns] = found
                still.append(part[(found > -np.inf).any(axis=1)])
            going_on = np.concatenate(still)
            begin, end = end, 3 * end - 2 * begin
    return exact


def _cosines(
    pool: UnitVectors, queries: np.ndarray, candidates: np.ndarray, known: np.ndarray, threads: ThreadPoolExecutor
) -> np.ndarray:
    """(q, c) float32 cosines of some queries and all of their candidates; -inf for those that are not known."""
    pairs = np.flatnonzero(known)
    pairs = pairs[np.argsort(candidates.ravel()[pairs])]
    row_of_pair = candidates.ravel()[pairs]
    begins = np.flatnonzero(np.diff(row_of_pair, prepend=-1))
    rows, ends = row_of_pair[begins], np.append(begins[1:], len(pairs))
    query_of_pair = pairs // candidates.shape[1]
    sorted_cosines = np.empty(len(pairs), np.float32)

    def compute(block: tuple[int, int]) -> None:
        some = slice(*block)
        of_block = slice(begins[some][0], ends[some][-1])
        sorted_cosines[of_block] = _cosines_of_rows(
            pool, rows[some], ends[some] - begins[some], queries, query_of_pair[of_block]
        )

    for _ in threads.map(compute, row_blocks(0, len(rows), _ROWS_IN_CACHE)):
        pass
    found = np.full(candidates.size, -np.inf, np.float32)
    found[pairs] = sorted_cosines
    return found.reshape(candidates.shape)


def _cosines_of_rows(
    pool: UnitVectors, rows: np.ndarray, counts: np.ndarray, queries: np.ndarray, asking: np.ndarray
) -> np.ndarray:
    """The cosines of some rows with the queries that have them among their candidates: `counts` of each row."""
    vectors = torch.from_numpy(pool.take_as_stored(rows)).float().numpy()
    squares, products = np.empty(len(rows), np.float32), np.empty(len(asking), np.float32)
    faiss.fvec_norms_L2sqr(faiss.swig_ptr(squares), faiss.swig_ptr(vectors), pool.width, len(rows))
    place = np.repeat(np.arange(len(rows)), counts)
    # One pair after the other: matrix products round differently for another number of rows.
    pointers = [faiss.swig_ptr(array) for array in (queries, asking, vectors, place, products)]
    faiss.pairwise_indexed_inner_product(pool.width, len(asking), *pointers)
    return products / np.sqrt(squares)[place]
