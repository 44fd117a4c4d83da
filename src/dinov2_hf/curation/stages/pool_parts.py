"""The parts in which the pool is searched for copies, so that what was found among earlier sources stays valid.

An image is compared with the images of its own part and of the parts before it. So no pair is left out, and a part
that is added last changes nothing in the others. A part is what one index holds: a source, or a group of sources. If
every pair is compared there is no index to learn, and each source is a part.
"""

import numpy as np

from ..algorithms.index_groups import grouped_by_size
from ..algorithms.index_settings import FLAT_ROWS
from ..run_context import Curation
from ..storage.manifests import hash_of


def searches_exhaustively(curation: Curation) -> bool:
    """Whether every pair of the pool is compared. This is known before there are vectors."""
    arguments = curation.arguments
    if arguments.index is not None:
        return arguments.index == "Flat"
    return arguments.search_recall == 1 or curation.sources.rows_of("uncurated") <= FLAT_ROWS


def pieces_of_pool(curation: Curation) -> list[range]:
    """The numbers of the pieces of each source of the pool."""
    numbers = np.array([piece.source for piece in curation.pieces], dtype=np.int64)
    bounds = np.searchsorted(numbers, np.arange(curation.sources.roles.count("uncurated") + 1))
    return [range(*pair) for pair in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def index_groups(curation: Curation) -> list[range]:
    """The pieces of the pool that each of its indexes holds.

    An index that the user names holds the whole pool. An exhaustive search has an index only in name.
    """
    sources = pieces_of_pool(curation)
    if curation.arguments.index is not None or searches_exhaustively(curation):
        return [range(sources[-1].stop)]
    sizes = [len(curation.sources.range_of(number)) for number in range(len(sources))]
    return [range(sources[group.start].start, sources[group[-1]].stop) for group in grouped_by_size(sizes)]


def searched_parts(curation: Curation, piece: int) -> list[range]:
    """The pieces that one piece is compared with, by index."""
    if searches_exhaustively(curation):
        return [range(next(source.stop for source in pieces_of_pool(curation) if piece in source))]
    return [group for group in index_groups(curation) if group.start <= piece]


def rows_of_pieces(curation: Curation) -> np.ndarray:
    """(pieces of the pool + 1,) the first row of each piece among the vectors of the pool, and last their number."""
    store, folder = curation.pool_vectors(), curation.folders["embed"]
    rank_of = {path.name: rank for rank, path in enumerate(folder.shards())}
    counts = np.zeros(pieces_of_pool(curation)[-1].stop, np.int64)
    for name, count in zip(store.shard_names, np.diff(store.offsets), strict=True):
        counts[rank_of[name.split("/")[0]]] = count
    return np.concatenate([[0], np.cumsum(counts)])


def hash_of_vectors(curation: Curation, pieces: range) -> str:
    """The hash of all vectors of some pieces of the pool, in their order."""
    return hash_of(curation.checksums("embed", "uncurated.npy")[pieces.start : pieces.stop])


def knows_all_neighbors(curation: Curation) -> bool:
    """Whether each image is compared with all others by an exhaustive search."""
    return searches_exhaustively(curation) and len(pieces_of_pool(curation)) == 1
