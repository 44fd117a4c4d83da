"""Whose turn it is in an endless sequence that is dealt out by weights: fixed by a seed, and entered anywhere."""

from collections.abc import Sequence

import numpy as np
import torch

from .sample_seeds import mix_seed


ROUND = 10_000  # turns in which the shares are exact


class WeightedTurns:
    """Turns of several members. Each has its share of every round of 10,000 turns, in an order drawn for that round.

    So it is known at once how often a member has had its turn before any other turn, however late.

    Args:
        weights: one for each member, above 0; only their ratios count.
        seed: of the order.
        length: positions of a turn.

    Raises:
        ValueError: a weight is not above 0, or below one 10,000th of all.
    """

    def __init__(self, weights: Sequence[float], seed: int, length: int = 1):
        if min(weights) <= 0 or min(weights) * ROUND < sum(weights):
            raise ValueError(
                f"the weights are {', '.join(f'{weight:g}' for weight in weights)}, but each must be above 0, and at"
                f" least one {ROUND:,}th of all."
            )
        shares = ROUND * np.asarray(weights, dtype=float) / sum(weights)
        self.counts = np.floor(shares).astype(int)
        # What is left over goes to the largest remainders, so that the counts fill a round.
        self.counts[np.argsort(self.counts - shares, kind="stable")[: ROUND - self.counts.sum()]] += 1
        self.seed, self.length = seed, length
        self._number, self._round = -1, (self.counts, self.counts)  # of no round yet

    def at(self, position: int) -> tuple[int, int]:
        """Whose turn it is at a position, counted from 0, and how many positions this member has had before it."""
        turn, offset = divmod(position, self.length)
        number, place = divmod(turn, ROUND)
        if number != self._number:
            self._number, self._round = number, self._drawn(number)
        members, before = self._round
        member = int(members[place])
        return member, (number * int(self.counts[member]) + int(before[place])) * self.length + offset

    def _drawn(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The members of one round, and for each of its turns how many the same member has had in it."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, number))
        order = torch.randperm(ROUND, generator=generator).numpy()
        members = np.repeat(np.arange(len(self.counts)), self.counts)[order]
        before = np.empty(ROUND, dtype=int)
        for member, count in enumerate(self.counts):
            before[members == member] = np.arange(count)
        return members, before
