"""Groups of sources: what a further one leaves as it is."""

import numpy as np
import pytest

from dinov2_hf.curation.algorithms.index_groups import grouped_by_size


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([], []),
        ([7], [[0]]),
        ([7, 3], [[0], [1]]),
        ([7, 3, 2, 1], [[0], [1], [2], [3]]),
        ([3, 7], [[0, 1]]),
        ([7, 3, 3], [[0], [1, 2]]),
        ([7, 4, 3, 3], [[0, 1, 2, 3]]),  # 3 and 3 are more than 4, and with it more than 7
        ([5, 5, 5], [[0, 1], [2]]),
        ([5, 5, 5, 5], [[0, 1, 2, 3]]),
        ([9, 0, 0], [[0], [1, 2]]),
    ],
)
def test_groups(sizes, groups):
    assert [list(group) for group in grouped_by_size(sizes)] == groups


def test_a_further_source_changes_no_larger_group():
    generator = np.random.default_rng(0)
    for _ in range(200):
        sizes = generator.integers(1, 1000, generator.integers(1, 30)).tolist()
        before, after = grouped_by_size(sizes[:-1]), grouped_by_size(sizes)
        rows = [sum(sizes[number] for number in group) for group in after]
        assert rows == sorted(set(rows), reverse=True)
        assert after[:-1] == before[: len(after) - 1]
        added = sum(sizes[number] for number in after[-1])
        assert all(sum(sizes[number] for number in group) > added for group in after[:-1])


def test_of_equal_sources_groups_are_few():
    for count in range(1, 200):
        assert len(grouped_by_size([10] * count)) == bin(count).count("1")
