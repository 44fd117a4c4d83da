"""Near copies: one of each group stays, and none that resembles an evaluation image (paper, appendix A).

An edge joins two rows whose similarity exceeds a threshold; connected components are the groups.

* Self-deduplication: 64 neighbours, cosine above 0.6; one representative of each component stays.
* Relative deduplication: cosine above 0.45; a whole component goes if a reference image touches it.

A component may chain: A resembles B and B resembles C, but C does not resemble A. `deduplicate` counts such
components, and can split them into stars, in which every dropped row resembles the one that stays.

Shapes: `n` rows of the pool, `e` edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import coo_array, csgraph

from .neighbors import Neighbors
from .unit_vectors import UnitVectors, row_blocks


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
        return self.chosen(self.similarities > checked_threshold(threshold))

    def between(self, kept: np.ndarray) -> "Edges":
        """The edges between rows that are kept, (n,) bool; rows keep their numbers."""
        return self.chosen(kept[self.rows] & kept[self.others])

    def chosen(self, mask: np.ndarray) -> "Edges":
        """The edges where `mask`, (e,) bool, is true."""
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


def crowded_rows(edges: Edges, kept: np.ndarray, num_neighbors: int, threshold: float) -> np.ndarray:
    """The rows whose full lists of neighbours may hide further neighbours among those that are kept.

    A list that is not full of rows above the threshold holds all of them.

    Args:
        edges: of neighbour lists; those above `threshold` count.
        kept: (n,) bool; others were dropped after the search.
        num_neighbors: of each list.

    Returns:
        int64 rows that are kept, in rising order.
    """
    counts = np.bincount(edges.rows[edges.similarities > checked_threshold(threshold)], minlength=len(kept))
    return np.flatnonzero(kept & (counts >= num_neighbors))


def checked_threshold(threshold: float) -> float:
    """The threshold; raises ValueError if it is not a cosine."""
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be a cosine similarity, in [-1, 1].")
    return threshold


def connected_components(edges: Edges, num_rows: int) -> np.ndarray:
    """The component of every row.

    Returns:
        (n,) int32, equal for rows that a path of edges joins, numbered from 0.

    Raises:
        ValueError: an edge names a row that is not in [0, num_rows).
    """
    for ends in (edges.rows, edges.others):
        if len(ends) and not (0 <= ends.min() and ends.max() < num_rows):
            raise ValueError(f"edges join rows up to {ends.max()}, but there are {num_rows} rows.")
    graph = coo_array((np.ones(len(edges), np.int8), (edges.rows, edges.others)), shape=(num_rows, num_rows))
    return csgraph.connected_components(graph, directed=False)[1]


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


def deduplicate(
    vectors: UnitVectors,
    edges: Edges,
    *,
    threshold: float = 0.6,
    ids: np.ndarray | None = None,
    quality: np.ndarray | None = None,
    split_chains: bool = False,
) -> Deduplication:
    """Keep one row of each component of near copies.

    The row with the smallest id stays. If `quality` is given, the row with the highest quality stays, and among equals
    the one with the smallest id. Both depend on the images only, not on shards or the order of the rows.

    Args:
        vectors: the pool, for the similarities between dropped and kept rows.
        edges: from all neighbour lists of the pool; those above `threshold` count.
        threshold: cosine that joins two rows (paper: 0.6).
        ids: (n,) unique integers; None: the numbers of the rows.
        quality: (n,) any finite numbers, higher is better.
        split_chains: if rows of a component do not resemble its representative, keep a further representative among
            these rows, until the similarity of every dropped row to the one that stays for it exceeds `threshold`.

    Raises:
        ValueError: `threshold` is not a cosine, or `ids` or `quality` are not one finite number for each row.
    """
    num_rows = len(vectors)
    edges = edges.above(threshold)
    components = connected_components(edges, num_rows)
    ids, quality = _checked_order(num_rows, ids, quality)

    # Only rows in components of two and more are looked at from here on.
    sizes = np.bincount(components, minlength=1)
    members = np.flatnonzero(sizes[components] > 1)
    representatives = _representatives(members, components, ids, quality)
    similarities = pair_similarities(vectors, members, vectors, representatives)
    chained = similarities <= threshold
    report = _component_report(vectors, members, components, representatives, similarities, chained)
    if split_chains and chained.any():
        star_of = partial(_representatives, components=components, ids=ids, quality=quality)
        _split_into_stars(vectors, members, star_of, threshold, representatives, similarities, chained)
    drops = members != representatives
    kept = np.ones(num_rows, bool)
    kept[members[drops]] = False
    report = {
        "rows": num_rows,
        "edges": len(edges),
        "threshold": threshold,
        "kept": int(kept.sum()),
        "dropped": int(drops.sum()),
        "chains_split": bool(split_chains),
        **report,
    }
    return Deduplication(kept, members[drops], representatives[drops], similarities[drops], report)


def _checked_order(num_rows: int, ids: np.ndarray | None, quality: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) ids and qualities by which the rows of a component are ordered."""
    ids = np.arange(num_rows) if ids is None else np.asarray(ids)
    quality = np.zeros(num_rows, np.float32) if quality is None else np.asarray(quality)
    for name, values in (("ids", ids), ("quality", quality)):
        if values.shape != (num_rows,):
            raise ValueError(f"{name} has shape {values.shape}, but must have one value for each of {num_rows} rows.")
    if not np.isfinite(quality).all():
        raise ValueError(f"quality of row {np.flatnonzero(~np.isfinite(quality))[0]} is not a finite number.")
    return ids, quality


def _representatives(rows: np.ndarray, components: np.ndarray, ids: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """For each row, the row of its component with the highest quality, and among equals with the smallest id."""
    order = np.lexsort((ids[rows], -quality[rows].astype(np.float64), components[rows]))
    _, first, inverse = np.unique(components[rows[order]], return_index=True, return_inverse=True)
    representatives = np.empty_like(rows)
    representatives[order] = rows[order][first][inverse]
    return representatives


def pair_similarities(
    vectors: UnitVectors, rows: np.ndarray, other_vectors: UnitVectors, others: np.ndarray
) -> np.ndarray:
    """(len(rows),) float32 exact cosines of pairs of rows."""
    found = np.empty(len(rows), np.float32)
    for first, end in row_blocks(0, len(rows)):
        pair = vectors.take(rows[first:end]), other_vectors.take(others[first:end])
        found[first:end] = np.einsum("pd,pd->p", *pair)
    return found


def _split_into_stars(vectors, members, star_of, threshold, representatives, similarities, chained) -> None:
    """Give another representative to members that do not resemble theirs, in place.

    In each round and component, the best of the rows that are left takes all the others that resemble it.
    """
    left = np.flatnonzero(chained)
    while len(left):
        chosen = star_of(members[left])
        found = pair_similarities(vectors, members[left], vectors, chosen)
        takes = (found > threshold) | (members[left] == chosen)  # rounding may put a cosine with itself below 1
        representatives[left[takes]], similarities[left[takes]] = chosen[takes], found[takes]
        left = left[~takes]


_COMPARED_MEMBERS = 1000


def _component_report(vectors, members, components, representatives, similarities, chained) -> dict:
    labels, sizes = np.unique(components[members], return_counts=True)
    largest = []
    for label in labels[np.argsort(-sizes, kind="stable")[:20]]:
        inside = components[members] == label
        compared = vectors.take(members[inside][:_COMPARED_MEMBERS])
        largest.append(
            {
                "size": int(inside.sum()),
                "representative": int(representatives[inside][0]),
                "lowest_similarity_to_representative": float(similarities[inside].min()),
                "lowest_similarity_inside": float((compared @ compared.T).min()),
                "members_compared": len(compared),
            }
        )
    return {
        "components": len(labels),
        "component_sizes": size_histogram(sizes),
        "largest_components": largest,
        "chained_components": len(np.unique(components[members[chained]])),
        "chained_rows": int(chained.sum()),
    }


def size_histogram(sizes: np.ndarray) -> dict[str, int]:
    """How many groups have 1, 2, 3-4, 5-8, 9-16, ... members."""
    if not len(sizes):
        return {}
    bins = np.ceil(np.log2(sizes)).astype(int)
    counts = np.bincount(bins)
    names = [str(2**i) if i < 2 else f"{2 ** (i - 1) + 1}-{2**i}" for i in range(len(counts))]
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def deduplicate_against(
    vectors: UnitVectors,
    references: UnitVectors,
    edges: Edges,
    reference_edges: Edges,
    *,
    threshold: float = 0.45,
) -> Deduplication:
    """Drop every whole component of the pool that a reference image touches.

    Edges between references would only join components that go anyway, so they are not needed.

    Args:
        vectors: the pool.
        references: the images of evaluation sets, train and test splits (paper, appendix A.3).
        edges: between rows of the pool; those above `threshold` count, so their search must have kept as many.
        reference_edges: from rows of the pool (`rows`) to references (`others`).
        threshold: cosine that joins (paper: 0.45).

    Returns:
        `duplicate_of` is a row of `references`. A row that itself resembles a reference has the most similar one. The
        other rows of the component have the reference with the strongest edge into it; its similarity to them may be
        lower than `threshold`.

    Raises:
        ValueError: `threshold` is not a cosine, or an edge names a reference that does not exist.
    """
    num_rows = len(vectors)
    touching = reference_edges.above(threshold)
    if len(touching) and not (0 <= touching.others.min() and touching.others.max() < len(references)):
        raise ValueError(
            f"reference_edges name reference {touching.others.max()}, but there are {len(references)} references."
        )
    edges = edges.above(threshold)
    components = connected_components(edges, num_rows)

    # Sorted by falling similarity, then by reference: the first of each row and of each component is taken.
    order = np.lexsort((touching.others, -touching.similarities))
    rows, others = touching.rows[order], touching.others[order]
    reference_of_component = np.full(num_rows, -1, np.int64)
    labels, first = np.unique(components[rows], return_index=True)
    reference_of_component[labels] = others[first]
    reference_of_row = reference_of_component[components]
    touched, first = np.unique(rows, return_index=True)
    reference_of_row[touched] = others[first]

    kept = reference_of_row < 0
    dropped = np.flatnonzero(~kept)
    duplicate_of = reference_of_row[dropped]
    similarities = pair_similarities(vectors, dropped, references, duplicate_of)
    report = {
        "rows": num_rows,
        "references": len(references),
        "threshold": threshold,
        "edges": len(edges),
        "reference_edges": len(touching),
        "kept": int(kept.sum()),
        "dropped": len(dropped),
        "dropped_directly": len(touched),
        "dropped_through_component": len(dropped) - len(touched),
        "components_dropped": len(labels),
        "references_found": len(np.unique(others)),
    }
    return Deduplication(kept, dropped, duplicate_of, similarities, report)
