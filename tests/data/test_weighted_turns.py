"""Turns that are dealt out by weights, against a walk through all of them."""

from collections import Counter

import pytest

from dinov2_hf.data.weighted_turns import ROUND, WeightedTurns


def test_shares_are_exact_in_every_round_and_counted_without_a_walk():
    turns, had = WeightedTurns([2, 1, 5], seed=3), Counter()
    for position in range(2 * ROUND):
        member, before = turns.at(position)
        assert before == had[member]
        had[member] += 1
        if position == ROUND - 1:
            assert [had[member] for member in range(3)] == [2500, 1250, 6250]
    assert WeightedTurns([2, 1, 5], seed=3).at(ROUND + 77) == turns.at(ROUND + 77)


def test_rounds_and_seeds_have_orders_of_their_own():
    def order(seed, start):
        turns = WeightedTurns([1, 1], seed)
        return [turns.at(start + place)[0] for place in range(50)]

    assert order(0, 0) != order(0, ROUND) != order(1, ROUND)
    assert {*order(0, 0)} == {0, 1}


def test_a_turn_may_be_several_positions_long():
    single, long = WeightedTurns([3, 1], seed=0), WeightedTurns([3, 1], seed=0, length=4)
    for position in range(400):
        member, before = single.at(position // 4)
        assert long.at(position) == (member, 4 * before + position % 4)


def test_what_is_left_over_goes_to_the_largest_remainders():
    assert WeightedTurns([1, 1, 1], seed=0).counts.tolist() == [3334, 3333, 3333]


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, 1e-6]])
def test_weights_without_a_turn_are_refused(weights):
    with pytest.raises(ValueError, match="each must be above 0"):
        WeightedTurns(weights, seed=0)
