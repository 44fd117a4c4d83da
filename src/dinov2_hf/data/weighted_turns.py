"""Turns in an endless sequence by weights, determined by a seed, with access to any position."""

from collections.abc import Sequence

import numpy as np
import torch

from .sample_seeds import mix_seed


ROUND = 10_000  # turns in which the shares are exact


class WeightedTurns:
    """Turns of several members. Each has its share of every round of 10,000 turns, in a random order for that round.

    So the number of earlier turns of a member can be computed directly for any position.

    Args:
        weights: one for each member, above 0; only their ratios count.
        seed: seed of the order.
        length: positions in a turn.

    Raises:
        ValueError: a weight is not above 0, or is below one 10,000th of the sum.
    """

    def __init__(self, weights: Sequence[float], seed: int, length: int = 1):
        if min(weights) <= 0 or min(weights) * ROUND < sum(weights):
            raise ValueError(
                f"the weights are {', '.join(f'{weight:g}' for weight in weights)}, but each must be above 0, and at"
                f" least one {ROUND:,}th of all."
            )
        shares = ROUND * np.asarray(weights, dtype=float) / sum(weights)
        self.counts = np.floor(shares).astype(int)
        # The rest goes to the largest remainders, so that the counts fill a round.
        self.counts[np.argsort(self.counts - shares, kind="stable")[: ROUND - self.counts.sum()]] += 1
        self.seed, self.length = seed, length
        self._number, self._round = -1, (self.counts, self.counts)  # no round yet

    def at(self, position: int) -> tuple[int, int]:
        """The member at a position, counted from 0, and the number of earlier positions of this member."""
        turn, offset = divmod(position, self.length)
        number, place = divmod(turn, ROUND)
        if number != self._number:
            self._number, self._round = number, self._drawn(number)
        members, before = self._round
        member = int(members[place])
        return member, (number * int(self.counts[member]) + int(before[place])) * self.length + offset

    def _drawn(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The members of one round, and for each turn the number of earlier turns of the same member in the round."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, number))
        order = torch.randperm(ROUND, generator=generator).numpy()
        members = np.repeat(np.arange(len(self.counts)), self.counts)[order]
        before = np.empty(ROUND, dtype=int)
        for member, count in enumerate(self.counts):
            before[members == member] = np.arange(count)
        return members, before
