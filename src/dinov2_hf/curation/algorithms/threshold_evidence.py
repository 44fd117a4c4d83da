"""What speaks for a threshold: how much other ones would drop, what they would drop wrongly, and pairs beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .deduplication import Edges, connected_components
from .unlike_pairs import UnlikePairs


STEP = 0.05
STEPS_BELOW, STEPS_ABOVE = 3, 6
SHOWN_PAIRS = 6


def other_thresholds(threshold: float) -> list[float]:
    """Cosines around a threshold, rising, itself among them."""
    found = [round(threshold + STEP * step, 6) for step in range(-STEPS_BELOW, STEPS_ABOVE + 1)]
    return [value for value in found if -1 <= value < 1]


def search_floor(threshold: float) -> float:
    """From which cosine on a search must keep pairs, so that the other thresholds can be compared."""
    return other_thresholds(threshold)[0]


def copies_at(edges: Edges, threshold: float) -> int:
    """How many rows go at a threshold, where one of each component stays."""
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
    """A row for each threshold: what would go, and what of that chance alone explains.

    Args:
        dropped: images that would go at each.
        unlike: of the pool, or of pool and benchmark; None: not known.
        num_rows: of the pool.
        num_others: that each image of it is compared with.
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
    """Of pairs within one pool, which two neighbour lists can hold, one each."""
    ends = np.sort(np.stack([edges.rows, edges.others]), axis=0)
    _, first = np.unique(ends, axis=1, return_index=True)
    return Edges(ends[0, first], ends[1, first], edges.similarities[first])
