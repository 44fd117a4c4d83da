"""Components, representatives, chains and references: known answers, and a loop-written union-find."""

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.deduplication import (
    Edges,
    connected_components,
    deduplicate,
    deduplicate_against,
    neighbor_edges,
    size_histogram,
)
from dinov2_hf.curation.algorithms.index_settings import IndexSettings
from dinov2_hf.curation.algorithms.neighbors import Neighbors, build_index, search
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings
from tests.curation.algorithms.synthetic import at_angles, clustered_vectors


FLAT = IndexSettings("Flat")


def edges_of(pairs, similarity=0.9):
    rows, others = np.array(pairs, np.int64).reshape(-1, 2).T
    return Edges(rows, others, np.full(len(rows), similarity, np.float32))


def all_edges(vectors, threshold):
    """Every pair above the threshold, by search with all others as neighbours."""
    found = search(
        build_index(vectors, FLAT), vectors, vectors, len(vectors) - 1, FLAT, own_rows=np.arange(len(vectors))
    )
    return neighbor_edges(found, threshold)


def union_find(pairs, num_rows):
    """The smallest row of the component of each row."""
    parents = list(range(num_rows))

    def root(row):
        while parents[row] != row:
            row = parents[row]
        return row

    for a, b in pairs:
        a, b = root(a), root(b)
        parents[max(a, b)] = min(a, b)
    return [root(row) for row in range(num_rows)]


def test_components_are_those_of_union_find():
    generator = np.random.default_rng(0)
    pairs = generator.integers(300, size=(170, 2))
    found = connected_components(edges_of(pairs), 300)
    expected = union_find(pairs.tolist(), 300)
    first = [int(np.flatnonzero(found == label)[0]) for label in found]
    assert first == expected
    assert sorted(set(found.tolist())) == list(range(len(set(expected))))


def test_no_edges_no_components():
    assert connected_components(edges_of([]), 3).tolist() == [0, 1, 2]
    result = deduplicate(ArrayEmbeddings(np.eye(3)), edges_of([]))
    assert result.kept.all()
    assert len(result.dropped) == 0
    assert result.report["components"] == 0


def test_edges_of_neighbor_lists():
    neighbors = Neighbors(
        np.array([[7, 8, -1], [9, -1, -1]]), np.array([[0.9, 0.6, -np.inf], [0.61, -np.inf, -np.inf]], np.float32)
    )
    edges = neighbor_edges(neighbors, 0.6, start=3)
    assert list(zip(edges.rows, edges.others, strict=True)) == [(3, 7), (4, 9)]  # 0.6 is not above 0.6
    assert len(edges.above(0.7)) == 1
    assert len(Edges.joined([edges, edges.above(0.7)])) == 3
    assert len(Edges.joined([])) == 0


def test_one_of_each_group_stays():
    """Groups at 0, 90, 180 degrees; the smallest id of each stays."""
    vectors = ArrayEmbeddings(at_angles([0, 90, 5, 180, 95, 2]))
    edges = all_edges(vectors, 0.6)
    result = deduplicate(vectors, edges)
    assert np.flatnonzero(result.kept).tolist() == [0, 1, 3]
    assert result.dropped.tolist() == [2, 4, 5]
    assert result.duplicate_of.tolist() == [0, 1, 0]
    np.testing.assert_allclose(result.similarities, np.cos(np.deg2rad([5, 5, 2])), atol=1e-6)
    assert result.report["component_sizes"] == {"2": 1, "3-4": 1}
    assert result.report["chained_components"] == 0
    assert (result.report["kept"], result.report["dropped"]) == (3, 3)

    by_id = deduplicate(vectors, edges, ids=np.array([50, 40, 30, 20, 10, 60]))
    assert np.flatnonzero(by_id.kept).tolist() == [2, 3, 4]
    by_quality = deduplicate(vectors, edges, quality=[1, 0, 1, 0, 3, 2])
    assert np.flatnonzero(by_quality.kept).tolist() == [3, 4, 5]
    equal_quality = deduplicate(vectors, edges, quality=[1] * 6, ids=np.array([50, 40, 30, 20, 10, 60]))
    assert np.array_equal(equal_quality.kept, by_id.kept)


def test_the_threshold_itself_is_no_edge():
    vectors = ArrayEmbeddings(at_angles([0, 10]))
    assert deduplicate(vectors, edges_of([(0, 1)], 0.5), threshold=0.5).kept.all()
    assert not deduplicate(vectors, edges_of([(0, 1)], 0.5), threshold=0.49).kept.all()


@pytest.mark.parametrize("seed", range(3))
def test_what_stays_does_not_depend_on_the_order_of_the_rows(seed):
    vectors, _ = clustered_vectors(200, 16, num_clusters=25, noise=0.6)
    ids = np.random.default_rng(5).permutation(1000)[:200]
    order = np.random.default_rng(seed).permutation(200)
    kept = []
    for rows in (np.arange(200), order):
        pool = ArrayEmbeddings(vectors[rows])
        for split in (False, True):
            result = deduplicate(pool, all_edges(pool, 0.6), ids=ids[rows], split_chains=split)
            kept.append(set(ids[rows][result.kept].tolist()))
    assert kept[0] == kept[2]
    assert kept[1] == kept[3]
    assert len(kept[0]) < 200


CHAIN = at_angles([0, 40, 80, 120, 160])  # neighbours at a cosine of 0.77, the next at 0.17


def test_a_chain_is_counted():
    vectors = ArrayEmbeddings(CHAIN)
    result = deduplicate(vectors, all_edges(vectors, 0.6))
    assert np.flatnonzero(result.kept).tolist() == [0]
    assert result.report["chained_components"] == 1
    assert result.report["chained_rows"] == 3
    largest = result.report["largest_components"][0]
    assert largest["size"] == 5
    assert largest["lowest_similarity_inside"] == pytest.approx(np.cos(np.deg2rad(160)), abs=1e-6)
    assert largest["lowest_similarity_to_representative"] == pytest.approx(np.cos(np.deg2rad(160)), abs=1e-6)


def test_a_chain_splits_into_stars():
    vectors = ArrayEmbeddings(CHAIN)
    result = deduplicate(vectors, all_edges(vectors, 0.6), split_chains=True)
    assert np.flatnonzero(result.kept).tolist() == [0, 2, 4]
    assert result.duplicate_of.tolist() == [0, 2]
    assert (result.similarities > 0.6).all()
    assert result.report["chains_split"]


def test_stars_are_greedy_and_cover():
    """Against a loop: rows by falling quality, each taking all that are left in its component and resemble it."""
    vectors, _ = clustered_vectors(300, 12, num_clusters=60, noise=0.7)
    vectors = ArrayEmbeddings(vectors)
    quality = np.random.default_rng(3).random(300)
    edges = all_edges(vectors, 0.8)
    result = deduplicate(vectors, edges, threshold=0.8, quality=quality, split_chains=True)
    roots = union_find(zip(edges.rows.tolist(), edges.others.tolist(), strict=True), 300)
    owner = {}
    for row in np.argsort(-quality):
        if row in owner:
            continue
        for other in range(300):
            if other not in owner and roots[other] == roots[row]:
                if other == row or float(vectors.vectors[row] @ vectors.vectors[other]) > 0.8:
                    owner[other] = row
    assert result.report["chained_components"] > 3
    assert set(np.flatnonzero(result.kept)) == {row for row, own in owner.items() if row == own}
    assert all(owner[row] == own for row, own in zip(result.dropped, result.duplicate_of, strict=True))
    assert (result.similarities > 0.8).all()


def test_a_touched_component_goes_whole():
    vectors = ArrayEmbeddings(at_angles([0, 40, 80, 180, 200, 270]))
    references = ArrayEmbeddings(at_angles([-20, 190]))
    touching = search(build_index(references, FLAT), references, vectors, 1, FLAT)
    result = deduplicate_against(
        vectors, references, all_edges(vectors, 0.7), neighbor_edges(touching, 0.7), threshold=0.7
    )
    assert np.flatnonzero(result.kept).tolist() == [5]
    assert result.dropped.tolist() == [0, 1, 2, 3, 4]
    assert result.duplicate_of.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(result.similarities, np.cos(np.deg2rad([20, 60, 100, 10, 10])), atol=1e-6)
    assert result.report["dropped_directly"] == 3
    assert result.report["dropped_through_component"] == 2
    assert result.report["components_dropped"] == 2
    assert result.report["references_found"] == 2


def test_relative_is_components_of_the_union():
    """Joining pool and references in one graph and dropping every component with a reference gives the same rows."""
    both, _ = clustered_vectors(260, 16, num_clusters=70, noise=0.7)
    pool, references = ArrayEmbeddings(both[:230]), ArrayEmbeddings(both[230:])
    pairs = [(i, j) for i in range(260) for j in range(i) if float(both[i] @ both[j]) > 0.7]
    roots = np.array(union_find(pairs, 260))
    expected = ~np.isin(roots[:230], roots[230:])
    touching = search(build_index(references, FLAT), references, pool, 1, FLAT)
    result = deduplicate_against(pool, references, all_edges(pool, 0.7), neighbor_edges(touching, 0.7), threshold=0.7)
    np.testing.assert_array_equal(result.kept, expected)
    assert 20 < expected.sum() < 210
    assert result.report["dropped_through_component"] > 0


def test_references_that_swallow_everything():
    pool = ArrayEmbeddings(at_angles([0, 1, 2]))
    touching = Edges(np.array([1]), np.array([0]), np.array([0.99], np.float32))
    result = deduplicate_against(pool, ArrayEmbeddings(at_angles([1])), all_edges(pool, 0.45), touching)
    assert not result.kept.any()
    assert result.report["kept"] == 0


def test_edges_stay_between_kept_rows():
    edges = edges_of([(0, 1), (1, 2), (2, 3)]).between(np.array([False, True, True, True]))
    assert edges.rows.tolist() == [1, 2]


def test_histogram_of_sizes():
    assert size_histogram(np.array([1, 2, 2, 3, 4, 5, 8, 9, 1000])) == {
        "1": 1,
        "2": 2,
        "3-4": 2,
        "5-8": 2,
        "9-16": 1,
        "513-1024": 1,
    }
    assert size_histogram(np.array([])) == {}


def test_bad_input_is_refused():
    vectors = ArrayEmbeddings(np.eye(3))
    for threshold in (-1.1, 1.01, np.nan):
        with pytest.raises(ValueError, match="threshold=.* must be a cosine"):
            deduplicate(vectors, edges_of([]), threshold=threshold)
    with pytest.raises(ValueError, match="edges join rows up to 3, but there are 3 rows"):
        deduplicate(vectors, edges_of([(0, 3)]))
    with pytest.raises(ValueError, match="ids has shape"):
        deduplicate(vectors, edges_of([]), ids=np.arange(2))
    with pytest.raises(ValueError, match="quality of row 1 is not a finite number"):
        deduplicate(vectors, edges_of([]), quality=[0, np.nan, 1])
    with pytest.raises(ValueError, match="name reference 3, but there are 3"):
        deduplicate_against(vectors, vectors, edges_of([]), edges_of([(0, 3)]))
