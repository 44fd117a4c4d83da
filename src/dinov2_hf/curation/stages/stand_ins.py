"""Images that take the place of a copy without a vector, so that the picture that they share is not lost.

Of images with equal files or equal perceptual hashes, one stays before any vector is made. If no vector can be made of
it (its file is gone, a precomputed vector is missing or not finite), the next of its copies is embedded.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..run_context import Curation


FILE = "stand_ins.npy"
# Each pass tries this many times more copies of an image, so a thousand blank pictures do not take a thousand passes.
MORE_AT_ONCE = 4
# Takes row ids; returns those that have a vector, and their vectors.
Embed = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def find_stand_ins(failed: np.ndarray, copies: np.ndarray, embed: Embed) -> tuple[np.ndarray, np.ndarray]:
    """Embed copies of images that have no vector, and take the first copy that has one.

    Args:
        failed: (f,) row ids of images without a vector.
        copies: (m, 2) row ids of a copy and of the image that stays for it, sorted by the latter; copies of one image
            are in the order of preference.
        embed: makes the vectors.

    Returns:
        (k, 2) row ids of a stand-in and of the image that it stands for, and (k, D) vectors of the stand-ins.
    """
    pairs, vectors_of_pairs, at_once = [], [], 1
    begins, ends = (np.searchsorted(copies[:, 1], failed, side).tolist() for side in ("left", "right"))
    left = list(zip(failed.tolist(), begins, ends, strict=True))
    while left := [(row, begin, end) for row, begin, end in left if begin < end]:
        tried = [copies[begin : min(begin + at_once, end), 0].tolist() for _, begin, end in left]
        found, vectors = embed(np.array(sorted(row for rows in tried for row in rows), dtype=np.int64))
        place_of = {row: place for place, row in enumerate(found.tolist())}
        still_left = []
        for (row, begin, end), rows in zip(left, tried, strict=True):
            stand_in = next((copy for copy in rows if copy in place_of), None)
            if stand_in is None:
                still_left.append((row, begin + at_once, end))
            else:
                pairs.append((stand_in, row))
                vectors_of_pairs.append(vectors[place_of[stand_in]])
        left = still_left
        at_once *= MORE_AT_ONCE
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(vectors_of_pairs, dtype=np.float32)


def load_stand_ins(curation: Curation) -> np.ndarray:
    """(k, 2) row ids of all shards of `embed`, as `find_stand_ins` gives them."""
    return np.concatenate([np.load(path) for path in curation.folders["embed"].files(FILE)])


def amend_dropped(curation: Curation, table: pa.Table, stand_ins: np.ndarray) -> pa.Table:
    """The records of `hash_deduplicate` without stand-ins. The others name a stand-in in place of one that failed.

    Args:
        table: of `DROPPED_SCHEMA`.
    """
    if not len(stand_ins):
        return table
    table = table.filter(~np.isin(table["row_id"].to_numpy(), stand_ins[:, 0]))
    new, old = (curation.facts(stand_ins[:, column], ["id"])["id"].to_pylist() for column in (0, 1))
    place = pc.index_in(table["duplicate_of"], pa.array(old, pa.string()))
    is_other = pc.is_valid(place)
    renamed = pc.if_else(is_other, pa.array(new, pa.string()).take(place.combine_chunks()), table["duplicate_of"])
    # The similarity was to the image that failed.
    similarity = pc.if_else(is_other, pa.scalar(None, pa.float32()), table["similarity"])
    for name, values in (("duplicate_of", renamed), ("similarity", similarity)):
        table = table.set_column(table.column_names.index(name), table.schema.field(name), values)
    return table
