"""Neighbour search against brute force in loops, and the index against its parts."""

import faiss
import numpy as np
import pytest

from dinov2_hf.curation.algorithms.deduplication import neighbor_edges
from dinov2_hf.curation.algorithms.index_settings import IndexSettings, choose_index
from dinov2_hf.curation.algorithms.neighbors import (
    add_rows,
    build_index,
    load_index,
    merge_indexes,
    save_index,
    search,
    train_index,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from dinov2_hf.curation.storage.embeddings import EmbeddingStore, write_shard
from tests.curation.algorithms.synthetic import clustered_vectors


FLAT = IndexSettings("Flat")
QUANTIZED = IndexSettings("OPQ32_64,IVF64,PQ32x4fs", num_probes=48)


@pytest.fixture(scope="module")
def vectors():
    """6,000 vectors of width 64, of which a third are near copies of others."""
    vectors, _ = clustered_vectors(4000, 64, num_clusters=80, noise=1.2)
    generator = np.random.default_rng(1)
    copies = vectors[:2000] + generator.standard_normal((2000, 64)) * 0.06
    return ArrayEmbeddings(np.concatenate([vectors, copies]))


@pytest.fixture(scope="module")
def trained(vectors):
    return train_index(vectors, QUANTIZED)


@pytest.fixture(scope="module")
def quantized(vectors, trained):
    return add_rows(trained, vectors)


def brute_force(pool, queries, k, *, floor=-1.0, skip_self=False):
    rows = np.full((len(queries), k), -1)
    for i, query in enumerate(queries):
        found = [(-float(query @ row), j) for j, row in enumerate(pool) if not (skip_self and i == j)]
        found = [pair for pair in sorted(found) if -pair[0] >= floor][:k]
        rows[i, : len(found)] = [j for _, j in found]
    return rows


@pytest.mark.parametrize("skip_self", [False, True])
@pytest.mark.parametrize("floor", [-1.0, 0.5])
def test_flat_search_is_brute_force(skip_self, floor):
    pool = ArrayEmbeddings(np.random.default_rng(0).standard_normal((40, 4)))
    found = search(
        build_index(pool, FLAT), pool, pool, 5, FLAT, own_rows=np.arange(40) if skip_self else None, floor=floor
    )
    expected = brute_force(pool.vectors, pool.vectors, 5, skip_self=skip_self, floor=floor)
    np.testing.assert_array_equal(found.rows, expected)
    assert ((found.similarities >= floor) == (expected >= 0)).all()
    cosines = np.einsum("qkd,qd->qk", pool.vectors[found.rows], pool.vectors)
    np.testing.assert_allclose(found.similarities[expected >= 0], cosines[expected >= 0], atol=1e-6)


def test_ranges_of_queries_make_up_the_whole(vectors):
    queries = ArrayEmbeddings(vectors.vectors[:50])
    index = build_index(vectors, FLAT)
    whole = search(index, vectors, queries, 3, FLAT)
    parts = [search(index, vectors, queries, 3, FLAT, start=start, stop=start + 25) for start in (0, 25)]
    np.testing.assert_array_equal(whole.rows, np.concatenate([part.rows for part in parts]))


def test_quantized_neighbors_are_the_exact_ones(vectors, quantized):
    exact = search(build_index(vectors, FLAT), vectors, vectors, 64, FLAT, stop=500, own_rows=np.arange(len(vectors)))
    found = search(quantized, vectors, vectors, 64, QUANTIZED, stop=500, own_rows=np.arange(len(vectors)))
    recall = np.mean([len(np.intersect1d(a, b)) / 64 for a, b in zip(exact.rows, found.rows, strict=True)])
    assert recall >= 0.99
    # Not those of the codes, which are wrong by more than a tenth here.
    cosines = np.einsum("qkd,qd->qk", vectors.vectors[found.rows], vectors.vectors[:500])
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-5)
    assert (np.diff(found.similarities, axis=1) <= 0).all()


def test_a_floor_loses_no_edges(vectors, quantized):
    """Queries are given up early, yet at least 99% of the edges above the floor are found, and none below."""
    exact = search(build_index(vectors, FLAT), vectors, vectors, 64, FLAT, floor=0.6, own_rows=np.arange(len(vectors)))
    found = search(quantized, vectors, vectors, 64, QUANTIZED, floor=0.6, own_rows=np.arange(len(vectors)))
    expected = set(zip(*edge_lists(exact), strict=True))
    edges = set(zip(*edge_lists(found), strict=True))
    assert len(expected) > 4000
    assert edges <= expected
    assert len(edges) >= 0.99 * len(expected)


def edge_lists(neighbors):
    edges = neighbor_edges(neighbors, 0.6)
    return edges.rows.tolist(), edges.others.tolist()


@pytest.mark.parametrize("factory", ["Flat", "IVF32,Flat", "OPQ16_64,IVF32,PQ16x4fs", "OPQ8_64,IVF32_HNSW32,PQ8np"])
def test_parts_merge_to_the_whole(tmp_path, vectors, factory):
    """Each tested form, filled in two shards and through files, finds what the index filled at once finds."""
    settings = IndexSettings(factory, num_probes=32)
    few = ArrayEmbeddings(vectors.vectors[:3000])
    trained = train_index(few, settings, training_rows=1500)
    for part, (start, stop) in enumerate([(0, 1100), (1100, 3000)]):
        save_index(add_rows(trained, few, start, stop), tmp_path / f"{part}.faiss")
    merged = merge_indexes((load_index(tmp_path / f"{part}.faiss") for part in range(2)), 3000)
    assert merged.ntotal == 3000
    whole = add_rows(trained, few)
    assert trained.ntotal == 0
    for index in (merged, whole):
        found = search(index, few, few, 1, settings)
        assert (found.rows[:, 0] == np.arange(3000)).mean() > 0.99
    np.testing.assert_array_equal(
        search(merged, few, few, 5, settings, stop=100).rows, search(whole, few, few, 5, settings, stop=100).rows
    )


def test_a_missing_part_is_noticed(vectors, trained):
    part = add_rows(trained, vectors, 0, 100)
    with pytest.raises(ValueError, match="hold 100 rows, but the pool has 6000"):
        merge_indexes([part], len(vectors))
    with pytest.raises(ValueError, match="hold 0 rows"):
        merge_indexes([], len(vectors))


def test_a_store_on_disk_gives_the_neighbors_of_the_array(tmp_path, vectors, quantized):
    for shard in range(3):
        rows = np.arange(shard * 2000, shard * 2000 + 2000)
        write_shard(tmp_path, f"{shard:05d}", vectors.vectors[rows], rows)
    store = EmbeddingStore(tmp_path)
    of_array = search(quantized, vectors, vectors, 4, QUANTIZED, stop=100)
    of_store = search(quantized, store, store, 4, QUANTIZED, stop=100)
    assert (of_array.rows == of_store.rows).mean() > 0.98  # half precision changes the order of near ties
    np.testing.assert_allclose(of_array.similarities, of_store.similarities, atol=1e-3)


def test_training_is_seeded(vectors, trained):
    again = faiss.serialize_index(train_index(vectors, QUANTIZED))
    np.testing.assert_array_equal(again, faiss.serialize_index(trained))


@pytest.mark.parametrize("num_rows", [1, 100, 50_000, 300_000, 1_000_000, 10_000_000, 1_300_000_000])
@pytest.mark.parametrize("width", [8, 100, 384, 512, 1536])
def test_chosen_indexes_can_be_made(num_rows, width):
    settings = choose_index(num_rows, width, memory_bytes=2e11)
    index = faiss.index_factory(width, settings.factory, faiss.METRIC_INNER_PRODUCT)
    assert index.d == width
    assert settings.is_exact == (num_rows <= 50_000)
    if settings.num_lists:
        assert 1 <= settings.num_lists / num_rows**0.5 <= 3


def test_more_lists_are_visited_of_more():
    probes = [choose_index(rows, 64).num_probes for rows in (60_000, 300_000, 10_000_000)]
    assert probes == [128, 256, 256]
    assert IndexSettings("IVF16,Flat").num_probes == 64  # all of them


def test_the_choice_follows_the_memory():
    assert choose_index(10**6, 512).factory == "OPQ128_512,IVF2048,PQ128x4fs"
    assert choose_index(10**8, 512, memory_bytes=6e9).factory == "OPQ64_512,IVF16384,PQ64x4fs"
    assert choose_index(40_000, 512, memory_bytes=5e7).factory.startswith("OPQ")  # flat would take 8e7
    with pytest.raises(ValueError, match="memory_bytes=1e\\+06 is too little for an index of 1000000 vectors"):
        choose_index(10**6, 512, memory_bytes=1e6)


@pytest.mark.parametrize("factory", ["IDMap,IVF16,Flat", "HNSW32", "IVF16,PQ8", "PCA64,Flat", "flat", ""])
def test_untested_factories_are_refused(factory):
    with pytest.raises(ValueError, match="not among the tested forms"):
        IndexSettings(factory)


def test_bad_input_is_refused(tmp_path, vectors, trained, quantized):
    small = ArrayEmbeddings(vectors.vectors[:10])
    index = build_index(small, FLAT)
    with pytest.raises(ValueError, match="k=11 neighbours .* has 10 rows"):
        search(index, small, small, 11, FLAT)
    with pytest.raises(ValueError, match="k=10 neighbours .* has 9 other rows"):
        search(index, small, small, 10, FLAT, own_rows=np.arange(10))
    with pytest.raises(ValueError, match="k=0"):
        search(index, small, small, 0, FLAT)
    with pytest.raises(ValueError, match="floor=1.5"):
        search(index, small, small, 1, FLAT, floor=1.5)
    with pytest.raises(ValueError, match="queries have width 3"):
        search(index, small, ArrayEmbeddings(np.ones((1, 3))), 1, FLAT)
    with pytest.raises(ValueError, match="index holds 10 rows, but the pool has 6000"):
        search(index, vectors, vectors, 1, FLAT)
    with pytest.raises(ValueError, match="is learned from at least 64 rows, but there are 10"):
        train_index(small, QUANTIZED)
    with pytest.raises(ValueError, match="is learned from at least 256 rows, but there are 200"):
        train_index(vectors, IndexSettings("OPQ8_64,IVF4,PQ8np"), training_rows=200)
    with pytest.raises(ValueError, match=r"index 'OPQ7_32,IVF4,PQ8x4fs' must have .* as in OPQ8_64,\.\.\.,PQ8"):
        IndexSettings("OPQ7_32,IVF4,PQ8x4fs")
    with pytest.raises(ValueError, match="trained and empty"):
        add_rows(quantized, vectors)
    with pytest.raises(ValueError, match="num_probes=0"):
        IndexSettings("Flat", num_probes=0)
    (tmp_path / "damaged").write_bytes(b"IxFI")
    with pytest.raises(ValueError, match="not a readable faiss index"):
        load_index(tmp_path / "damaged")
