"""The store of embeddings: what comes back, what is refused, what is in memory."""

import os
import resource

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings, row_blocks, shard_range
from dinov2_hf.curation.storage.embeddings import EmbeddingStore, problems_of, write_shard
from tests.curation.algorithms.synthetic import unit


@pytest.fixture
def vectors():
    return np.random.default_rng(0).standard_normal((10, 6)) * 3


@pytest.fixture
def store(tmp_path, vectors):
    write_shard(tmp_path, "00001", vectors[4:], np.arange(104, 110))
    write_shard(tmp_path, "00000", vectors[:4], np.arange(100, 104))
    return EmbeddingStore(tmp_path)


def test_rows_follow_the_names_of_the_shards(store, vectors):
    assert (len(store), store.width, store.shard_names) == (10, 6, ["00000", "00001"])
    np.testing.assert_array_equal(store.ids, np.arange(100, 110))
    assert store.offsets.tolist() == [0, 4, 10]
    np.testing.assert_allclose(store.read(0, 10), unit(vectors), atol=1e-3)


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 7), (4, 10), (5, 5), (10, 10)])
def test_read_across_shards(store, vectors, start, stop):
    read = store.read(start, stop)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, unit(vectors)[start:stop], atol=1e-3)


def test_take_is_read_in_any_order(store):
    rows = np.array([9, 0, 3, 4, 3])
    np.testing.assert_array_equal(store.take(rows), store.read(0, 10)[rows])
    assert store.take(np.array([], int)).shape == (0, 6)


def test_reading_gives_unit_length(store):
    np.testing.assert_allclose(np.linalg.norm(store.read(0, 10), axis=1), 1, atol=1e-6)


def test_files_are_half_precision_and_mapped(store, tmp_path):
    stored = np.load(tmp_path / "00000.npy")
    assert stored.dtype == np.float16
    assert all(isinstance(vectors, np.memmap) for vectors in store._vectors)


def test_an_array_is_like_a_store(store):
    array = ArrayEmbeddings(store.read(0, 10))
    np.testing.assert_allclose(array.read(2, 7), store.read(2, 7), atol=1e-6)
    np.testing.assert_allclose(array.take([7, 1]), store.take([7, 1]), atol=1e-6)
    assert (len(array), array.width) == (10, 6)


def test_an_array_is_not_changed():
    given = np.full((2, 3), 5.0, np.float32)
    ArrayEmbeddings(given)
    assert (given == 5).all()


def test_bad_rows_are_left_out_and_named(tmp_path, vectors):
    vectors[2] = 0
    vectors[5, 1] = np.nan
    vectors[6, 0] = np.inf
    problems = problems_of(vectors)
    assert problems.tolist() == ["", "", "zero", "", "", "not finite", "not finite", "", "", ""]
    with pytest.raises(ValueError, match="the vector of id 12 in shard '0' is zero"):
        write_shard(tmp_path, "0", vectors, np.arange(10, 20))
    write_shard(tmp_path, "0", vectors[problems == ""], np.arange(10)[problems == ""])
    np.testing.assert_array_equal(EmbeddingStore(tmp_path).ids, [0, 1, 3, 4, 7, 8, 9])


def test_large_values_do_not_overflow(tmp_path):
    write_shard(tmp_path, "0", np.array([[3e30, 4e30]], np.float32), [0])
    np.testing.assert_allclose(EmbeddingStore(tmp_path).read(0, 1), [[0.6, 0.8]], atol=1e-3)


def test_an_empty_shard_is_a_shard(tmp_path, vectors):
    write_shard(tmp_path, "0", vectors[:0], [])
    write_shard(tmp_path, "1", vectors, np.arange(10))
    assert len(EmbeddingStore(tmp_path)) == 10
    np.testing.assert_allclose(EmbeddingStore(tmp_path).take([0]), unit(vectors)[:1], atol=1e-3)


def test_a_shard_is_replaced_whole(tmp_path, vectors):
    write_shard(tmp_path, "0", vectors, np.arange(10))
    write_shard(tmp_path, "0", vectors[:3], np.arange(3))
    assert len(EmbeddingStore(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.ids.npy", "0.npy"]


@pytest.mark.parametrize(
    ("bad", "ids", "message"),
    [
        (np.zeros(3), [0, 1, 2], r"3 ids and vectors of shape \(3,\)"),
        (np.zeros((3, 2), int), [0, 1, 2], r"type int64, but .* floating-point"),
        (np.ones((3, 2)), [0, 1], "2 ids and vectors of shape"),
        (np.ones((2, 2)), ["a", "b"], "one integer for each"),
    ],
)
def test_write_refuses(tmp_path, bad, ids, message):
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path, "0", bad, ids)
    assert not any(tmp_path.iterdir())


def test_store_refuses_other_widths(store, tmp_path):
    write_shard(tmp_path, "2", np.ones((1, 7)), [0])
    with pytest.raises(ValueError, match="'2.npy' has vectors of width 7, but '00000.npy' has 6"):
        EmbeddingStore(tmp_path)


def test_store_refuses_ids_that_occur_twice(store, tmp_path):
    write_shard(tmp_path, "2", np.ones((2, 6)), [103, 5])
    with pytest.raises(ValueError, match="1 ids occur more than once .* the first is 103"):
        _ = EmbeddingStore(tmp_path).ids


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not finite"), (0, "the zero vector")])
def test_reading_refuses_foreign_files_with_bad_rows(tmp_path, value, message):
    bad = np.ones((3, 2), np.float16)
    bad[1] = value
    np.save(tmp_path / "a.npy", bad)
    np.save(tmp_path / "a.ids.npy", np.array([7, 8, 9]))
    store = EmbeddingStore(tmp_path)
    with pytest.raises(ValueError, match=f"id 8 in shard 'a' is {message}"):
        store.read(0, 3)
    with pytest.raises(ValueError, match=f"id 8 in shard 'a' is {message}"):
        store.take(np.array([2, 1]))


def test_store_refuses_what_is_not_a_store(tmp_path, vectors):
    with pytest.raises(ValueError, match="holds no shard"):
        EmbeddingStore(tmp_path)
    np.save(tmp_path / "0.npy", vectors)
    with pytest.raises(ValueError, match="lacks its ids"):
        EmbeddingStore(tmp_path)
    np.save(tmp_path / "0.ids.npy", np.arange(9))
    with pytest.raises(ValueError, match="9 ids and vectors of shape .10, 6. and type float64"):
        EmbeddingStore(tmp_path)
    (tmp_path / "0.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="not a readable .npy"):
        EmbeddingStore(tmp_path)


@pytest.mark.parametrize(("num_rows", "world_size"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_ranges_of_ranks_cover_the_rows(num_rows, world_size):
    ranges = [shard_range(num_rows, rank, world_size) for rank in range(world_size)]
    assert [row for part in ranges for row in part] == list(range(num_rows))
    lengths = list(map(len, ranges))
    assert max(lengths) - min(lengths) <= 1
    with pytest.raises(ValueError, match="rank="):
        shard_range(num_rows, world_size, world_size)


def test_blocks_cover_the_range():
    assert list(row_blocks(3, 10, 3)) == [(3, 6), (6, 9), (9, 10)]


def test_a_store_of_more_shards_than_files_may_be_open(tmp_path):
    """The soft limit is raised; the hard one is the administrator's."""
    for shard in range(60):
        write_shard(tmp_path, f"{shard:05d}", np.ones((1, 2)), [shard])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, before[1]))
    try:
        assert EmbeddingStore(tmp_path).ids.tolist() == list(range(60))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
