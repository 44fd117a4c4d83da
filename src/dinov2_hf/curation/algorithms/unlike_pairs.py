"""How many pairs of unlike images exceed a threshold by chance. This tells what a descriptor can do for a pool.

Nearly all pairs of images that deduplication left are unlike. Three in a thousand of them exceed a certain cosine, and
their excesses over it fall off exponentially (Pickands 1975). The scale comes from the median excess, which hardly
changes by what deduplication cut off or by copies that it left. So the tail can be extended to the threshold.

For 1,000 photographs of different classes (perceptual descriptor) it expects 1.6 pairs above 0.6, and there are 4; it
expects 28 above 0.45, and there are 33.
"""

import math
from dataclasses import dataclass

import numpy as np

from .unit_vectors import UnitVectors


SAMPLED_ROWS = 1000
TAIL_SHARE = 0.003
TAIL_PAIRS = 20  # the fewest to learn from
FEWEST_PAIRS = 200  # fewer tell nothing about a tail


@dataclass(frozen=True)
class UnlikePairs:
    """The distribution of the cosine of two unlike images.

    Attributes:
        cosines: of sampled pairs, in rising order, up to where the tail begins.
        tail_share: the share of the pairs that are in the tail.
        start, scale: of the tail, which is an exponential.
        num_pairs: the number of pairs that were looked at.
    """

    cosines: np.ndarray
    tail_share: float
    start: float
    scale: float
    num_pairs: int

    def share_above(self, threshold: float) -> float:
        """The share of the pairs of unlike images whose cosine exceeds the threshold, in [0, 1]."""
        if threshold >= self.start:
            return self.tail_share * math.exp(-(threshold - self.start) / self.scale)
        below = np.searchsorted(self.cosines, threshold, side="right")
        return 1 - below / self.num_pairs


def sample_unlike_pairs(
    vectors: UnitVectors, others: UnitVectors | None = None, *, seed: int = 0
) -> UnlikePairs | None:
    """Learn the distribution from a sample.

    Args:
        vectors: the pool without copies.
        others: what it is compared with; None: the pool.
        seed: of the sample of `SAMPLED_ROWS` rows of each.

    Returns:
        None if there are fewer than `FEWEST_PAIRS` pairs.
    """
    if not len(vectors):
        return None
    generator = np.random.default_rng(seed)
    first = _sample(vectors, generator)
    if others is None:
        cosines = (first @ first.T)[np.triu_indices(len(first), 1)]
    else:
        cosines = (first @ _sample(others, generator).T).ravel()
    if len(cosines) < FEWEST_PAIRS:
        return None
    cosines = np.sort(cosines.astype(np.float64))
    in_tail = max(TAIL_PAIRS, math.ceil(TAIL_SHARE * len(cosines)))
    start = float(cosines[-in_tail - 1])
    excess = float(np.median(cosines[-in_tail:])) - start
    # Equal vectors have no tail, and a scale of 0 would divide by 0.
    scale = max(excess / math.log(2), 1e-6)
    return UnlikePairs(cosines[:-in_tail], in_tail / len(cosines), start, scale, len(cosines))


def _sample(vectors: UnitVectors, generator: np.random.Generator) -> np.ndarray:
    rows = generator.choice(len(vectors), min(SAMPLED_ROWS, len(vectors)), replace=False)
    return vectors.take(np.sort(rows))
