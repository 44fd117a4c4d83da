"""Similarities as a report shows them: a histogram, and exact counts of what it cannot show."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


# Bins of 0.01 from -1 to 1.
HISTOGRAM_EDGES = np.linspace(-1, 1, 201)


@dataclass(frozen=True)
class SimilarityCounts:
    """How many similarities are where.

    Attributes:
        bins: 200 counts, by `HISTOGRAM_EDGES`, of those that are known.
        above, below: of the known ones, how many exceed the threshold, and how many do not reach it. Counted one by
            one, since a threshold may lie inside a bin.
        unknown: how many are not known, since the search found nothing or stopped at its floor.
        floor: the lowest similarity that the search looked for; None: it knows all.
    """

    bins: list[int]
    above: int = 0
    below: int = 0
    unknown: int = 0
    floor: float | None = None

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))


def count_similarities(
    similarities: np.ndarray, threshold: float, *, missing: int = 0, floor: float | None = None
) -> SimilarityCounts:
    """Count cosines.

    Args:
        similarities: of any shape, float; -inf where one is not known.
        threshold: cosine to count above and below of.
        missing: further images that have no similarity at all.
        floor: of the search.
    """
    known = similarities[np.isfinite(similarities)]
    return SimilarityCounts(
        bins=np.histogram(np.clip(known, -1, 1), bins=HISTOGRAM_EDGES)[0].tolist(),
        above=int((known > threshold).sum()),
        below=int((known < threshold).sum()),
        unknown=similarities.size - len(known) + missing,
        floor=floor,
    )


def sum_of_counts(parts: Iterable[SimilarityCounts]) -> SimilarityCounts:
    """The counts of several shards or sources together."""
    parts = list(parts)
    floors = [part.floor for part in parts if part.floor is not None]
    return SimilarityCounts(
        bins=np.sum([np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64), *(part.bins for part in parts)], axis=0).tolist(),
        above=sum(part.above for part in parts),
        below=sum(part.below for part in parts),
        unknown=sum(part.unknown for part in parts),
        floor=max(floors, default=None),
    )


def load_counts(paths: Iterable[Path]) -> SimilarityCounts:
    """What `save` wrote in several shards, together."""
    return sum_of_counts(SimilarityCounts(**json.loads(path.read_text())) for path in paths)
