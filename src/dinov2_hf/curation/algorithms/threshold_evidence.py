"""Evidence for a threshold: what other thresholds would drop, what they would drop wrongly, and pairs beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .deduplication import Edges, connected_components
from .unlike_pairs import UnlikePairs


STEP = 0.05
STEPS_BELOW, STEPS_ABOVE = 3, 6
SHOWN_PAIRS = 6


def other_thresholds(threshold: float) -> list[float]:
    """Cosines around a threshold, in rising order; the threshold is one of them."""
    found = [round(threshold + STEP * step, 6) for step in range(-STEPS_BELOW, STEPS_ABOVE + 1)]
    return [value for value in found if -1 <= value < 1]


def search_floor(threshold: float) -> float:
    """The cosine from which a search must keep pairs, so that the other thresholds can be compared."""
    return other_thresholds(threshold)[0]


def copies_at(edges: Edges, threshold: float) -> int:
    """How many rows go at a threshold, if one of each component stays."""
    edges = edges.above(threshold)
    rows, numbers = np.unique(np.concatenate([edges.rows, edges.others]), return_inverse=True)
    if not len(rows):
        return 0
    first, second = numbers.reshape(2, -1)
    inside = Edges(first, second, edges.similarities)
    return len(rows) - int(connected_components(inside, len(rows)).max()) - 1


def threshold_table(
    thresholds: Sequence[float], dropped: Sequence[int], unlike: UnlikePairs | None, num_rows: int, num_others: int
) -> list[dict[str, Any]]:
    """A row for each threshold: how many images would go, and how many pairs chance alone explains.

    Args:
        dropped: the number of images that would go at each threshold.
        unlike: pairs of the pool, or of pool and benchmark; None: they are not known.
        num_rows: of the pool.
        num_others: the number of images that each image of the pool is compared with.
    """
    table = []
    for threshold, count in zip(thresholds, dropped, strict=True):
        row: dict[str, Any] = {"threshold": threshold, "images_dropped": int(count)}
        if unlike is not None:
            each = unlike.share_above(threshold) * num_others
            row["false_neighbors_of_an_image"] = float(f"{each:.3g}")
            row["expected_false_pairs"] = float(f"{each * num_rows:.3g}")
        table.append(row)
    return table


def pairs_beside(edges: Edges, threshold: float) -> dict[str, Edges]:
    """The pairs just "below" and just "above" a threshold, `SHOWN_PAIRS` of each, the nearest to it first."""
    found = {}
    for side, mask, sign in (
        ("below", edges.similarities <= threshold, -1),
        ("above", edges.similarities > threshold, 1),
    ):
        inside = edges.chosen(mask)
        order = np.lexsort((inside.others, inside.rows, sign * inside.similarities))
        found[side] = inside.chosen(order[:SHOWN_PAIRS])
    return found


def each_pair_once(edges: Edges) -> Edges:
    """One edge for each pair within a pool; two neighbour lists can hold the same pair."""
    ends = np.sort(np.stack([edges.rows, edges.others]), axis=0)
    _, first = np.unique(ends, axis=1, return_index=True)
    return Edges(ends[0, first], ends[1, first], edges.similarities[first])
