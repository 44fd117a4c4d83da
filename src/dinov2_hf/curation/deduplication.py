"""Near copies: out of each group of them one stays, and none that resembles an evaluation image (paper, appendix A).

Rows are joined by edges where their similarity exceeds a threshold; connected components are the groups.

* Self-deduplication: 64 neighbours, cosine above 0.6, one representative of each component stays.
* Relative deduplication: cosine above 0.45, and a component that any reference image touches goes whole.

A component may chain: A resembles B and B resembles C, but C does not resemble A. `deduplicate` counts such
components, and can split them into stars, in which every dropped row resembles the one that stays.

Shapes: `n` rows of the pool, `e` edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csgraph

from .embeddings import UnitVectors, row_blocks
from .neighbors import Neighbors


@dataclass(frozen=True)
class Edges:
    """Pairs of similar rows; a pair may occur in both directions.

    Attributes:
        rows, others: (e,) int64 rows.
        similarities: (e,) float32 cosines.
    """

    rows: np.ndarray
    others: np.ndarray
    similarities: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def above(self, threshold: float) -> "Edges":
        """The edges whose similarity exceeds `threshold`."""
        return self._chosen(self.similarities > checked_threshold(threshold))

    def between(self, kept: np.ndarray) -> "Edges":
        """The edges between rows that are kept, (n,) bool; rows keep their numbers."""
        return self._chosen(kept[self.rows] & kept[self.others])

    def _chosen(self, mask: np.ndarray) -> "Edges":
        return Edges(self.rows[mask], self.others[mask], self.similarities[mask])

    @staticmethod
    def joined(parts: Sequence["Edges"]) -> "Edges":
        """The edges of several shards together."""
        return Edges(
            np.concatenate([np.empty(0, np.int64), *(part.rows for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.others for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.similarities for part in parts)]),
        )


def neighbor_edges(neighbors: Neighbors, threshold: float, *, start: int = 0) -> Edges:
    """The edges of neighbour lists above a threshold.

    Args:
        neighbors: of the queries from `start` on.
        threshold: cosine that an edge must exceed.
        start: row of the first query.
    """
    query, column = np.nonzero(neighbors.similarities > checked_threshold(threshold))
    return Edges(query + start, neighbors.rows[query, column], neighbors.similarities[query, column])


def checked_threshold(threshold: float) -> float:
    """The threshold, or a ValueError where it is no cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be a cosine similarity, in [-1, 1].")
    return threshold


def connected_components(edges: Edges, num_rows: int) -> np.ndarray:
    """The component of every row.

    Returns:
        (n,) int64, equal for rows that a path of edges joins, numbered from 0 in the order of their first row.

    Raises:
        ValueError: an edge names a row that is not in [0, num_rows).
    """
    for ends in (edges.rows, edges.others):
        if len(ends) and not (0 <= ends.min() and ends.max() < num_rows):
            raise ValueError(f"edges join rows up to {ends.max()}, but there are {num_rows} rows.")
    graph = coo_array((np.ones(len(edges), np.int8), (edges.rows, edges.others)), shape=(num_rows, num_rows))
    _, labels = csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


@dataclass(frozen=True)
class Deduplication:
    """What stays of a pool, and why the rest goes.

    Attributes:
        kept: (n,) bool.
        dropped: (d,) int64 rows that go, in rising order.
        duplicate_of: (d,) int64 the row that stays for each of them (self), or the reference row (relative).
        similarities: (d,) float32 exact cosine of the two.
        report: counts for people, plain numbers and lists.
    """

    kept: np.ndarray
    dropped: np.ndarray
    duplicate_of: np.ndarray
    similarities: np.ndarray
    report: dict
