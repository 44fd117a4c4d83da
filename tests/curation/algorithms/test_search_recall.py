"""The least that a query must look at, against neighbours found and counted in loops.

Of 6,000 pairs a few are of neighbours that are equally near to within rounding.
"""

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.index_settings import IndexSettings
from dinov2_hf.curation.algorithms.neighbors import Neighbors, build_index, nearest_of_parts, search
from dinov2_hf.curation.algorithms.search_recall import (
    Sample,
    exact_neighbors,
    reach_recall,
    without_own_rows,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings, ChosenRows
from tests.curation.algorithms.synthetic import clustered_vectors


QUANTIZED = IndexSettings("OPQ16_64,IVF128,PQ16x4fs")
K = 20


@pytest.fixture(scope="module")
def pool():
    return ArrayEmbeddings(clustered_vectors(6000, 64, num_clusters=60, noise=1.2)[0])


@pytest.fixture(scope="module")
def index(pool):
    return build_index(pool, QUANTIZED)


@pytest.fixture(scope="module")
def sample(pool):
    rows = np.arange(0, 6000, 20)
    found = exact_neighbors(pool, pool.take(rows), K + 1, 0, len(pool))
    return Sample(ChosenRows(pool, rows), without_own_rows(found, rows), rows)


def share_found(pool, rows, found, floor=-1.0):
    """Of each row's K nearest others that are above the floor, those that are among the rows found."""
    hits = wanted = 0
    for row, of_row in zip(rows, found, strict=True):
        cosines = pool.vectors @ pool.vectors[row]
        cosines[row] = -2
        nearest = [other for other in np.argsort(-cosines)[:K] if cosines[other] >= floor]
        wanted += len(nearest)
        hits += len(set(nearest) & set(of_row.tolist()))
    return hits / wanted


def test_exact_neighbors_of_parts_are_those_of_the_whole(pool):
    queries = pool.vectors[:5]
    parts = [exact_neighbors(pool, queries, 7, *part) for part in ((0, 3), (3, 3), (3, 6000))]
    assert (parts[0].rows[:, 3:] == -1).all()
    assert (parts[1].rows == -1).all()
    found = nearest_of_parts(parts, 7)
    for query, rows, similarities in zip(queries, found.rows, found.similarities, strict=True):
        cosines = pool.vectors @ query
        assert rows.tolist() == np.argsort(-cosines)[:7].tolist()
        np.testing.assert_allclose(similarities, cosines[rows], atol=1e-6)


def test_a_row_is_left_out_of_its_own_neighbors():
    found = Neighbors(np.array([[4, 2, 9], [7, 5, 6]]), np.array([[1, 0.5, 0.4], [0.9, 0.8, 0.7]], np.float32))
    others = without_own_rows(found, np.array([2, 3]))
    assert others.rows.tolist() == [[4, 9], [7, 5]]
    np.testing.assert_allclose(others.similarities, [[1, 0.4], [0.9, 0.8]])


@pytest.mark.parametrize("asked", [0.8, 0.95, 0.999])
def test_what_is_asked_for_is_reached_and_measured_truly(pool, index, sample, asked):
    settings, recall = reach_recall(index, pool, sample, QUANTIZED, asked)
    assert (recall.asked, recall.pairs, recall.queries) == (asked, 300 * K, 300)
    assert recall.measured >= asked
    found = search(index, pool, pool, K, settings, own_rows=np.arange(6000))
    assert recall.measured == pytest.approx(share_found(pool, sample.own_rows, found.rows[sample.own_rows]), abs=5e-4)
    others = np.setdiff1d(np.arange(0, 6000, 7), sample.own_rows)[:300]
    assert share_found(pool, others, found.rows[others]) > 1 - 1.5 * (1 - asked)


def test_more_is_looked_at_for_more(pool, index, sample):
    costs = [reach_recall(index, pool, sample, QUANTIZED, asked)[0] for asked in (0.7, 0.9, 0.99)]
    assert costs[0].num_probes <= costs[2].num_probes
    assert costs[0].num_candidates < costs[1].num_candidates < costs[2].num_candidates


def test_neighbors_above_a_floor_alone_count(pool, index, sample):
    settings, recall = reach_recall(index, pool, sample, QUANTIZED, 0.95, floor=0.55)
    assert recall.pairs == (sample.truth.similarities >= 0.55).sum() < 300 * K
    found = search(index, pool, pool, K, settings, own_rows=np.arange(6000), floor=0.55)
    expected = share_found(pool, sample.own_rows, found.rows[sample.own_rows], 0.55)
    assert recall.measured == pytest.approx(expected, abs=5e-4)
    assert recall.measured >= 0.95


def test_where_few_are_above_a_floor_the_most_similar_count(pool, index, sample):
    assert (sample.truth.similarities > 0.99).sum() == 0
    assert reach_recall(index, pool, sample, QUANTIZED, 0.9, floor=0.99)[1].pairs == 100


def test_a_recall_that_is_not_reached_is_said(pool, index, sample):
    one_list = IndexSettings(QUANTIZED.factory, num_probes=1)
    settings, recall = reach_recall(index, pool, sample, one_list, 0.99, fixed_probes=True)
    assert settings.num_probes == 1
    found = search(index, pool, pool, K, settings, own_rows=np.arange(6000))
    assert recall.measured == pytest.approx(share_found(pool, sample.own_rows, found.rows[sample.own_rows]), abs=5e-4)
    assert recall.measured < 0.9


def test_of_equal_rows_any_are_neighbors():
    """64 of 500 equal rows: which of them a search finds says nothing of it."""
    vectors = clustered_vectors(3000, 64, num_clusters=3, noise=1.0)[0]
    vectors[:500] = vectors[0]
    pool = ArrayEmbeddings(vectors)
    settings, rows = IndexSettings("OPQ16_64,IVF8,PQ16x4fs"), np.arange(0, 500, 2)
    found = exact_neighbors(pool, pool.take(rows), K + 1, 0, len(pool))
    sample = Sample(ChosenRows(pool, rows), without_own_rows(found, rows), rows)
    chosen, recall = reach_recall(build_index(pool, settings), pool, sample, settings, 0.99)
    assert recall.measured == 1
    assert chosen.num_candidates == 23  # the next step after 20 and the row itself


def test_lists_of_whole_vectors_have_no_candidates(pool, sample):
    settings = IndexSettings("IVF64,Flat")
    chosen, recall = reach_recall(build_index(pool, settings), pool, sample, settings, 0.95)
    assert chosen.num_candidates is None
    assert recall.measured >= 0.95
    assert chosen.num_probes < 64
    more, recall = reach_recall(build_index(pool, settings), pool, sample, settings, 1.0)
    assert recall.measured == 1
    assert more.num_probes > chosen.num_probes
