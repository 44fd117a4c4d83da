"""Exact cosines of candidates against products in a loop."""

import numpy as np
import pytest

from dinov2_hf.curation.algorithms import exact_similarities as module
from dinov2_hf.curation.algorithms.exact_similarities import exact_similarities
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings, ChosenRows
from dinov2_hf.curation.storage.embeddings import EmbeddingStore, write_shard


@pytest.fixture(params=["array", "store", "chosen"])
def pool(request, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((200, 24)).astype(np.float32)
    if request.param == "array":
        return ArrayEmbeddings(vectors)
    for shard in range(4):
        write_shard(tmp_path, str(shard), vectors[shard * 50 : shard * 50 + 50], np.arange(50) + shard * 50)
    store = EmbeddingStore(tmp_path)
    return store if request.param == "store" else ChosenRows(store, np.random.default_rng(1).permutation(200))


@pytest.fixture
def asked(pool):
    generator = np.random.default_rng(2)
    candidates = generator.integers(0, 200, (30, 40))
    candidates[generator.random(candidates.shape) < 0.1] = -1
    return pool.read(10, 40), candidates


@pytest.mark.parametrize(("pairs", "rows"), [(131_072, 1024), (100, 50), (1, 1)])
def test_all_candidates(pool, asked, monkeypatch, pairs, rows):
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", pairs)
    monkeypatch.setattr(module, "_ROWS_IN_CACHE", rows)
    queries, candidates = asked
    known = (candidates >= 0) & (candidates != 7)
    found = exact_similarities(pool, queries, candidates, known)
    vectors = pool.read(0, 200)
    for query, of_query, similarities, is_known in zip(queries, candidates, found, known, strict=True):
        for row, similarity, expected in zip(of_query, similarities, is_known, strict=True):
            if expected:
                assert similarity == pytest.approx(float(vectors[row] @ query), abs=1e-6)
            else:
                assert similarity == -np.inf


def test_a_pair_has_one_similarity(pool, asked):
    """To the last bit, whatever it is computed together with."""
    queries, candidates = asked
    known = candidates >= 0
    together = exact_similarities(pool, queries, candidates, known)
    alone = [
        exact_similarities(pool, queries[row : row + 1], candidates[row : row + 1, ::-1], known[row : row + 1, ::-1])
        for row in range(len(queries))
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone)[:, ::-1])


def test_a_query_ends_where_a_round_has_none_above_the_floor():
    pool = ArrayEmbeddings(np.eye(8, dtype=np.float32))
    queries = np.eye(8, dtype=np.float32)[:2]
    # Rounds of 2, 4 and 1 candidates. The first query finds its own row in the second round, and 1 too late.
    candidates = np.array([[0, 3, 4, 5, 6, 7, 1], [3, 4, 1, 5, 6, 7, 0]])
    found = exact_similarities(pool, queries, candidates, np.ones((2, 7), bool), floor=0.5, first_round=2)
    assert np.argwhere(found > -np.inf).tolist() == [[0, 0]]
    assert found[0, 0] == 1


def test_nothing_is_known(pool, asked):
    queries, candidates = asked
    assert (exact_similarities(pool, queries, candidates, np.zeros(candidates.shape, bool)) == -np.inf).all()
