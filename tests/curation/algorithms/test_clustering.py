"""Spherical k-means against a loop, on samples, on several processes, and in its corners."""

import socket

import faiss
import numpy as np
import pytest
import torch.multiprocessing
from torch import distributed

from dinov2_hf.curation.algorithms import clustering
from dinov2_hf.curation.algorithms.clustering import ClusterMembers, assign_clusters, spherical_kmeans
from dinov2_hf.curation.algorithms.hierarchical_clustering import hierarchical_kmeans
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from dinov2_hf.curation.storage.embeddings import EmbeddingStore, write_shard
from tests.curation.algorithms.synthetic import clustered_vectors, unit


@pytest.fixture(scope="module")
def clustered():
    vectors, labels = clustered_vectors(900, 32, num_clusters=8, noise=0.5)
    return ArrayEmbeddings(vectors), labels


def test_one_round_is_the_mean_of_each_cluster(clustered):
    """Written as loops, from the centroids after 1 round to those after 2."""
    vectors, _ = clustered
    start = spherical_kmeans(vectors, 8, num_iterations=1, seed=7).centroids
    assigned = [int(np.argmax([float(row @ center) for center in start])) for row in vectors.vectors]
    expected = [unit(vectors.vectors[np.array(assigned) == c].sum(axis=0, keepdims=True))[0] for c in range(8)]
    found = spherical_kmeans(vectors, 8, num_iterations=2, seed=7)
    np.testing.assert_allclose(found.centroids, expected, atol=1e-6)
    best = [max(float(row @ center) for center in start) for row in vectors.vectors]
    assert found.objective[1] == pytest.approx(np.mean(best), abs=1e-6)


@pytest.mark.parametrize("most_spread", [0, 1000])
def test_first_centroids_are_rows(clustered, monkeypatch, most_spread):
    """Both kinds of them: with as many clusters as rows, all rows."""
    monkeypatch.setattr(clustering, "SPREAD_CLUSTERS", most_spread)
    few = ArrayEmbeddings(clustered[0].vectors[:30])
    found = spherical_kmeans(few, 30, num_iterations=1)
    np.testing.assert_allclose(np.sort(found.centroids, axis=0), np.sort(few.vectors, axis=0), atol=1e-6)


def test_clusters_are_found(clustered):
    vectors, labels = clustered
    found = spherical_kmeans(vectors, 8)
    assert np.all(np.diff(found.objective) > -1e-6)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)
    clusters, similarities = assign_clusters(vectors, found.centroids)
    pairs = set(zip(clusters.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == 8
    np.testing.assert_allclose(similarities, (vectors.vectors @ found.centroids.T).max(axis=1), atol=1e-6)
    # As good as faiss's own.
    peer = faiss.Kmeans(32, 8, niter=20, nredo=8, spherical=True, min_points_per_centroid=1)
    peer.train(vectors.vectors)
    assert found.objective[-1] > (vectors.vectors @ peer.centroids.T).max(axis=1).mean() - 1e-3


def test_a_store_in_shards_is_like_the_array(tmp_path, clustered):
    vectors, _ = clustered
    for shard, rows in enumerate(np.split(np.arange(900), [250, 251])):
        write_shard(tmp_path, str(shard), vectors.vectors[rows], rows)
    of_store = spherical_kmeans(EmbeddingStore(tmp_path), 8, num_iterations=5)
    of_array = spherical_kmeans(vectors, 8, num_iterations=5)
    np.testing.assert_allclose(of_store.centroids, of_array.centroids, atol=2e-3)


def test_a_sample_is_seeded_and_suffices(clustered):
    vectors, _ = clustered
    first, second, other = (
        spherical_kmeans(vectors, 8, num_iterations=3, training_rows=300, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.centroids, second.centroids)
    assert not np.array_equal(first.centroids, other.centroids)
    everything = spherical_kmeans(vectors, 8, num_iterations=3, training_rows=10**9, seed=3)
    whole = spherical_kmeans(vectors, 8, num_iterations=3, seed=3)
    np.testing.assert_array_equal(everything.centroids, whole.centroids)


def test_ranges_of_rows_are_assigned_alone(clustered):
    vectors, _ = clustered
    centroids = vectors.vectors[:8]
    whole, _ = assign_clusters(vectors, centroids)
    parts = [assign_clusters(vectors, centroids, start=a, stop=b)[0] for a, b in ((0, 400), (400, 900))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_empty_clusters_take_half_of_a_large_one():
    """All rows but one are equal: most first centroids are too, and their clusters are empty."""
    vectors = np.tile([1.0, 0.0, 0.0], (50, 1))
    vectors[7] = [0, 1, 0]
    found = spherical_kmeans(ArrayEmbeddings(vectors), 6, num_iterations=4)
    assert found.num_reassigned > 0
    assert np.isfinite(found.centroids).all()
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)


def test_opposite_rows_leave_a_centroid():
    found = spherical_kmeans(ArrayEmbeddings(np.array([[1.0, 0], [-1, 0]])), 1)
    assert np.isfinite(found.centroids).all()


def test_as_many_clusters_as_rows():
    vectors = ArrayEmbeddings(np.eye(5))
    found = spherical_kmeans(vectors, 5)
    assert found.objective[-1] == pytest.approx(1)
    assert sorted(assign_clusters(vectors, found.centroids)[0]) == [0, 1, 2, 3, 4]


def _kmeans_of_a_rank(rank, world_size, port, folder):
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    store = EmbeddingStore(f"{folder}/store")
    found = spherical_kmeans(store, 8, num_iterations=4, training_rows=700)
    hierarchy = hierarchical_kmeans(store, [8, 3], num_resamplings=1, num_iterations=4)
    np.savez(
        f"{folder}/{rank}.npz",
        centroids=found.centroids,
        objective=found.objective,
        clusters=hierarchy.clusters(2),
    )
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, clustered, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    vectors, _ = clustered
    write_shard(tmp_path / "store", "0", vectors.vectors, np.arange(900))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_kmeans_of_a_rank, (2, port, str(tmp_path)), nprocs=2)
    alone = spherical_kmeans(EmbeddingStore(tmp_path / "store"), 8, num_iterations=4, training_rows=700)
    first, second = (np.load(tmp_path / f"{rank}.npz") for rank in range(2))
    np.testing.assert_array_equal(first["centroids"], second["centroids"])
    np.testing.assert_allclose(first["centroids"], alone.centroids, atol=1e-6)
    np.testing.assert_allclose(first["objective"], alone.objective, atol=1e-6)
    hierarchy = hierarchical_kmeans(EmbeddingStore(tmp_path / "store"), [8, 3], num_resamplings=1, num_iterations=4)
    for found in (first, second):
        np.testing.assert_array_equal(found["clusters"], hierarchy.clusters(2))


def test_members_of_clusters():
    members = ClusterMembers(np.array([2, 0, 2, 2, 0]), 4)
    assert [members[c].tolist() for c in range(4)] == [[1, 4], [], [0, 2, 3], []]
    assert members.sizes.tolist() == [2, 0, 3, 0]
    assert len(members) == 4
    assert len(ClusterMembers(np.array([], int), 2)[1]) == 0


def test_bad_input_is_refused(clustered):
    vectors, _ = clustered
    with pytest.raises(ValueError, match="num_clusters=901 must be between 1 and .* 900"):
        spherical_kmeans(vectors, 901)
    with pytest.raises(ValueError, match="num_clusters=200 must be between 1 and .* 100"):
        spherical_kmeans(vectors, 200, training_rows=100)
    with pytest.raises(ValueError, match="num_iterations=0"):
        spherical_kmeans(vectors, 2, num_iterations=0)
    with pytest.raises(ValueError, match=r"centroids have shape \(2, 3\)"):
        assign_clusters(vectors, np.ones((2, 3)))
    with pytest.raises(ValueError, match="clusters must be in"):
        ClusterMembers(np.array([0, 3]), 3)
