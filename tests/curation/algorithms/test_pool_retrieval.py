"""Retrieval by sample and by cluster: counts known beforehand, and choices that are uniform and repeatable."""

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.clustering import ClusterMembers
from dinov2_hf.curation.algorithms.neighbors import Neighbors
from dinov2_hf.curation.algorithms.pool_retrieval import Retrieval, combine, retrieve_by_cluster, retrieve_by_sample


NEIGHBORS = Neighbors(np.array([[4, 2, 9], [4, 7, -1]]), np.array([[0.9, 0.5, 0.1], [0.8, 0.3, -np.inf]], np.float32))


def test_by_sample_is_a_multiset():
    found = retrieve_by_sample(NEIGHBORS)
    assert found.rows.tolist() == [4, 2, 9, 4, 7]
    assert found.queries.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(found.similarities, [0.9, 0.5, 0.1, 0.8, 0.3])
    assert found.report["retrieved"] == 5
    assert found.report["unique"] == 4


def test_by_sample_has_a_floor():
    found = retrieve_by_sample(NEIGHBORS, floor=0.3)
    assert found.rows.tolist() == [4, 2, 4, 7]
    assert (found.report["below_floor"], found.report["not_found"]) == (1, 1)
    with pytest.raises(ValueError, match="threshold=2"):
        retrieve_by_sample(NEIGHBORS, floor=2)


CLUSTERS = np.repeat(np.arange(5), [100, 30, 50, 10, 0])


def test_by_cluster_counts():
    """Cluster 0 has 4 queries, 1 has 3 (not more than 3), 2 has 5, 3 has none, 4 has 6 but no rows."""
    queries = np.repeat([0, 1, 2, 4], [4, 3, 5, 6])
    found = retrieve_by_cluster(ClusterMembers(CLUSTERS, 5), queries, rows_per_cluster=40)
    assert np.bincount(CLUSTERS[found.rows], minlength=5).tolist() == [40, 0, 40, 0, 0]
    assert len(np.unique(found.rows)) == 80
    assert found.report == {
        "mode": "cluster",
        "queries": 18,
        "clusters_hit": 4,
        "clusters_chosen": 3,
        "retrieved_before_cap": 80,
        "retrieved": 80,
        "unique": 80,
    }
    small = retrieve_by_cluster(ClusterMembers(CLUSTERS, 5), queries, rows_per_cluster=10_000)
    assert np.bincount(CLUSTERS[small.rows]).tolist() == [100, 0, 50]  # all of a smaller cluster


def test_the_cap_counts_before_and_after():
    queries = np.repeat([0, 2], 4)
    found = retrieve_by_cluster(ClusterMembers(CLUSTERS, 5), queries, max_rows=60)
    assert (found.report["retrieved_before_cap"], found.report["retrieved"], len(found.rows)) == (150, 60, 60)


def test_the_choice_is_seeded_and_its_own_for_each_cluster():
    queries = np.repeat([0, 2], 4)
    members = ClusterMembers(CLUSTERS, 5)
    options = {"rows_per_cluster": 20}
    first = retrieve_by_cluster(members, queries, **options).rows
    np.testing.assert_array_equal(first, retrieve_by_cluster(members, queries, **options).rows)
    assert first.tolist() != retrieve_by_cluster(members, queries, seed=1, **options).rows.tolist()
    # Another cluster that is hit as well changes nothing for this one.
    alone = retrieve_by_cluster(members, queries[:4], **options).rows
    np.testing.assert_array_equal(alone, first[CLUSTERS[first] == 0])


def test_the_choice_is_uniform():
    members, queries = ClusterMembers(np.zeros(20, int), 1), np.zeros(4, int)
    drawn = [retrieve_by_cluster(members, queries, rows_per_cluster=5, seed=seed).rows for seed in range(2000)]
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    # 500 expected, a standard deviation of 19.4.
    assert (abs(counts - 500) < 5 * 19.4).all()


def test_both_counts_of_a_union():
    def retrieval(rows):
        rows = np.array(rows, np.int64)
        return Retrieval(rows, rows, np.ones(len(rows), np.float32), {"retrieved": len(rows)})

    found = combine({"a": retrieval([5, 1, 5]), "b": retrieval([5, 2]), "c": retrieval([])})
    assert found.rows.tolist() == [1, 2, 5]
    assert found.multiplicity.tolist() == [1, 1, 3]
    brought = np.split(found.sources, found.offsets[1:-1])
    assert [numbers.tolist() for numbers in brought] == [[0], [1], [0, 1]]
    assert (found.report["multiset"], found.report["unique"]) == (5, 3)
    assert {name: source["brought_alone"] for name, source in found.report["sources"].items()} == {
        "a": 1,
        "b": 1,
        "c": 0,
    }
    assert len(combine({}).rows) == 0


def test_the_paper_s_total_is_a_multiset():
    """4 neighbours of each query: exactly 4 times their number, however often a row comes back (spec 12.3)."""
    everyone = Neighbors(np.zeros((1000, 4), np.int64), np.ones((1000, 4), np.float32))
    found = combine({"imagenet22k": retrieve_by_sample(everyone)})
    assert (found.report["multiset"], found.report["unique"]) == (4000, 1)


def test_bad_input_is_refused():
    members = ClusterMembers(CLUSTERS, 5)
    with pytest.raises(ValueError, match="rows_per_cluster=0"):
        retrieve_by_cluster(members, [0], rows_per_cluster=0)
    with pytest.raises(ValueError, match="query_clusters must be in \\[0, 5\\), but 5"):
        retrieve_by_cluster(members, [5])
