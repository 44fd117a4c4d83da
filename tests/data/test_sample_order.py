from itertools import chain, islice

import pytest

from dinov2_hf.data.sample_order import PreTrainingBatchSampler


def first_keys(num_batches, *arguments, **options):
    return list(islice(PreTrainingBatchSampler(*arguments, **options), num_batches))


def first_rows(num_batches, *arguments, **options):
    return [key.row for key in chain.from_iterable(first_keys(num_batches, *arguments, **options))]


def test_sharded_order_is_that_of_the_original():
    first, second = (first_rows(12, 21, 1, seed=0, rank=rank, world_size=2, order="sharded") for rank in range(2))
    assert first == [12, 15, 18, 5, 6, 13, 2, 4, 19, 11, 15, 5]
    assert second[:10] == [10, 17, 16, 0, 20, 14, 1, 8, 9, 3]
    assert first_rows(14, 21, 1, seed=0, world_size=2, order="sharded")[10:] == [15, 5, 2, 12]


def test_every_pass_of_the_global_order_is_a_new_permutation():
    rows = first_rows(8, 12, 3, seed=1)
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert rows[:12] != rows[12:]


def test_passes_follow_each_other_without_a_gap():
    assert first_rows(6, 10, 4, seed=3) == first_rows(24, 10, 1, seed=3)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_global_order_does_not_depend_on_the_number_of_processes(world_size):
    alone = first_keys(9, 20, 6, seed=5)
    ranks = [first_keys(9, 20, 6 // world_size, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    together = [list(chain.from_iterable(blocks)) for blocks in zip(*ranks, strict=True)]
    assert together == alone


@pytest.mark.parametrize("order", ["global", "sharded"])
@pytest.mark.parametrize("rank", [0, 1])
def test_starting_late_gives_the_tail(order, rank):
    options = {"seed": 2, "rank": rank, "world_size": 2, "order": order}
    assert first_keys(5, 11, 3, start_sample=7 * 3 * 2, **options) == first_keys(12, 11, 3, **options)[7:]


def test_another_number_of_processes_continues_the_same_order():
    """1 process x 6, then 2 x 3, then 3 x 1 accumulated twice, then 1 x 6: the rows and seeds of 1 x 6 throughout."""
    uninterrupted = list(chain.from_iterable(first_keys(8, 20, 6, seed=5)))
    seen = list(chain.from_iterable(first_keys(2, 20, 6, seed=5)))
    for batch_size, world_size, num_batches in ((3, 2, 2), (1, 3, 4), (6, 1, 2)):
        ranks = [
            first_keys(num_batches, 20, batch_size, seed=5, rank=rank, world_size=world_size, start_sample=len(seen))
            for rank in range(world_size)
        ]
        seen += [key for blocks in zip(*ranks, strict=True) for block in blocks for key in block]
    assert seen == uninterrupted


def test_starting_very_late_is_no_walk():
    (batch,) = first_keys(1, 1000, 2, seed=0, start_sample=10**15)
    assert len(batch) == 2


def test_seeds_differ_between_positions_runs_and_passes():
    keys = list(chain.from_iterable(first_keys(100, 10, 10, seed=0) + first_keys(100, 10, 10, seed=1)))
    seeds = {key.seed for key in keys}
    assert len(seeds) == len(keys) == 2000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert max(seeds) > 2**63


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("num_rows", (0, 1), {}),
        ("batch_size", (4, 0), {}),
        ("batch_size", (4, 5), {}),
        ("batch_size", (4, 3), {"world_size": 2}),
        ("rank", (4, 1), {"rank": 2, "world_size": 2}),
        ("start_sample", (4, 1), {"start_sample": -1}),
        ("start_sample", (4, 1), {"start_sample": 3, "world_size": 2, "order": "sharded"}),
        ("order", (4, 1), {"order": "shuffled"}),
    ],
)
def test_impossible_settings_are_refused(name, arguments, options):
    with pytest.raises(ValueError, match=name):
        PreTrainingBatchSampler(*arguments, seed=0, **options)
