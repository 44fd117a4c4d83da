"""Similarities and scores for a report: a histogram, and exact counts of what the histogram cannot show."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np


NUM_BINS = 200  # of cosines each is 0.01 wide


@dataclass(frozen=True)
class Histogram:
    """The number of values in each bin.

    Attributes:
        title: what the values are.
        unit: what has a value ("images").
        label: what the values beyond the threshold are, on its `side`, "above" or "below".
        threshold: the threshold that decided; None: no threshold decided anything.
        low, high: the ends of the bins.
        bins: counts of the values that are known; those beyond an end are in the last bin.
        above, below: how many exceed the threshold, and how many do not reach it. They are counted one by one, since
            a threshold may lie inside a bin.
        unknown: how many are not known, since the search found nothing or stopped at its floor.
        floor: the lowest similarity that the search looked for; None: it knows all of them.
        quantity: what the values are called.
    """

    title: str
    unit: str
    label: str
    side: str
    threshold: float | None
    low: float
    high: float
    bins: list[int]
    above: int = 0
    below: int = 0
    unknown: int = 0
    floor: float | None = None
    quantity: str = "cosine similarity"

    @property
    def edges(self) -> np.ndarray:
        return np.linspace(self.low, self.high, NUM_BINS + 1)


def histogram(
    values: np.ndarray,
    threshold: float | None,
    title: str,
    *,
    unit: str = "images",
    label: str,
    side: str = "above",
    low: float = -1.0,
    high: float = 1.0,
    missing: int = 0,
    floor: float | None = None,
    quantity: str = "cosine similarity",
) -> Histogram:
    """Count values.

    Args:
        values: floats of any shape; a value that is not known is not finite.
        missing: the number of further values that are not known.
        threshold, title, unit, label, side, low, high, floor, quantity: as in `Histogram`.
    """
    known = values[np.isfinite(values)]
    return Histogram(
        title, unit, label, side, threshold, low, high,
        bins=np.histogram(np.clip(known, low, high), bins=NUM_BINS, range=(low, high))[0].tolist(),
        above=0 if threshold is None else int((known > threshold).sum()),
        below=0 if threshold is None else int((known < threshold).sum()),
        unknown=values.size - len(known) + missing,
        floor=floor, quantity=quantity,
    )  # fmt: skip


def sum_of_histograms(parts: Iterable[Histogram]) -> Histogram:
    """The counts of several shards or sources together; there is at least one."""
    parts = list(parts)
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("above", "below", "unknown")}
    bins = np.sum([part.bins for part in parts], axis=0).tolist()
    floors = [part.floor for part in parts if part.floor is not None]
    return replace(parts[0], bins=bins, floor=max(floors, default=None), **counts)
