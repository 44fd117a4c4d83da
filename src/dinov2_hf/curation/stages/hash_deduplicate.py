"""The second stage drops repeated ids, equal files, and pictures with equal perceptual hashes. One of each stays."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..algorithms.image_hashes import HASH_BITS, first_of_equal, first_similar_hash
from ..run_context import Curation
from ..storage.dropped_images import Dropped
from ..storage.manifests import UnfinishedShard
from .ingest import QUALITY_COLUMNS, quality_of
from .stage import stage


@stage("hash_deduplicate", title="no equal files or hashes", writes_left=True, step="ingest")
def hash_deduplicate(
    curation: Curation, shard: UnfinishedShard, *, deduplicate_content: bool, perceptual_hash_distance: int | None,
    representative: str,
) -> Iterator[Dropped]:  # fmt: skip
    """Write the row ids that are left: `uncurated.npy`, `curated.npy` and `benchmark.npy`.

    `copies.npy`, (m, 2), has the row id of each image of the pool that repeats a file or a hash, and the row id of the
    image that stays for it. It is sorted by the image that stays; the best copies of an image come first.
    `to_embed.npy` and `copies_in_source.npy` hold the same for each source as if it were alone. Vectors are made of
    these images, so they stay valid when other sources come.

    Only the pool is deduplicated; ids must be unique within each role. The image with the smallest row id stays, or
    the best picture with `representative: best_quality`.
    """
    sources, by_quality = curation.sources, representative == "best_quality"
    has_ids = any(source.id_column for source in sources.sources)
    columns = ["row_id", "source", "content_hash", "perceptual_hash"]
    facts = curation.images([*columns, *(["id"] if has_ids else []), *(QUALITY_COLUMNS if by_quality else [])])
    to_embed, copies_in_source = [], []
    for role in ("uncurated", "curated", "benchmark"):
        of_role = [number for number, other in enumerate(sources.roles) if other == role]
        table = facts.filter(np.isin(facts["source"].to_numpy(), of_role))
        if by_quality:
            table = table.take(np.lexsort((table["row_id"].to_numpy(), -quality_of(table))))
        equal_files = deduplicate_content and role == "uncurated"
        distance = perceptual_hash_distance if role == "uncurated" else None
        left, copies, gone = _without_copies(table, has_ids, equal_files, distance)
        yield from gone
        np.save(shard.folder / f"{role}.npy", left)
        shard.rows += len(left)
        to_embed.append(left)
        if role == "uncurated":
            np.save(shard.folder / "copies.npy", copies)
            for number in of_role:
                alone = table.filter(pc.equal(table["source"], number)) if len(of_role) > 1 else table
                left, copies, _ = _without_copies(alone, has_ids, equal_files, distance)
                to_embed.append(left)
                copies_in_source.append(copies)
    np.save(shard.folder / "to_embed.npy", np.unique(np.concatenate(to_embed)))
    np.save(shard.folder / "copies_in_source.npy", np.concatenate(copies_in_source))


def _without_copies(
    table: pa.Table, has_ids: bool, equal_files: bool, distance: int | None
) -> tuple[np.ndarray, np.ndarray, list[Dropped]]:
    """The images that are left of some that are given in the order of preference.

    Args:
        equal_files: drop files of equal bytes.
        distance: drop images whose perceptual hashes differ in at most this many bits; None: do not.

    Returns:
        (n,) row ids that are left, ascending, (m, 2) copies as from `_copies`, and the images that go.
    """
    gone, copies = [], []
    if has_ids:
        first = first_of_equal(np.array(table["id"].to_pylist(), dtype=object))
        table, dropped = _split(table, first, "same id")
        gone.append(dropped)
    before = table["row_id"].to_numpy()
    if equal_files:
        first = first_of_equal(_as_bytes(table["content_hash"]))
        table, dropped = _split(table, first, "same file", np.ones(len(first)))
        copies.append(dropped)
    if distance is not None:
        first, bits = first_similar_hash(table["perceptual_hash"].to_numpy(), distance)
        table, dropped = _split(table, first, "same perceptual hash", 1 - bits / HASH_BITS)
        copies.append(dropped)
    return np.sort(table["row_id"].to_numpy()), _copies(before, copies), gone + copies


def _copies(row_ids: np.ndarray, dropped: list[Dropped]) -> np.ndarray:
    """(m, 2) row ids of copies, and of the image that stays for each.

    Args:
        row_ids: of the pool, the best first.
        dropped: names for each copy the image that it repeats. An image that an equal file repeats can itself be
            dropped for an equal hash.
    """
    stays_for = {
        row: other for one in dropped for row, other in zip(one.row_ids.tolist(), one.others.tolist(), strict=True)
    }
    pairs = [(row, stays_for.get(stays_for[row], stays_for[row])) for row in row_ids.tolist() if row in stays_for]
    return np.array(sorted(pairs, key=lambda pair: pair[1]), dtype=np.int64).reshape(-1, 2)


def _split(
    table: pa.Table, first: np.ndarray, reason: str, alike: np.ndarray | None = None
) -> tuple[pa.Table, Dropped]:
    """The rows that stay, and the images that go, ascending.

    Args:
        first: (n,) for each row, the place of the first of its kind.
        alike: (n,) similarity to that one.
    """
    row_ids, stays = table["row_id"].to_numpy(), first == np.arange(len(first))
    gone = np.flatnonzero(~stays)
    gone = gone[np.argsort(row_ids[gone])]
    similarities = None if alike is None else alike[gone]
    return table.filter(stays), Dropped(row_ids[gone], reason, row_ids[first[gone]], similarities)


def _as_bytes(hashes: pa.ChunkedArray) -> np.ndarray:
    """(n,) fixed-width bytes, as they lie in memory."""
    width = hashes.type.byte_width
    arrays = [
        np.frombuffer(chunk.buffers()[1], f"S{width}")[chunk.offset : chunk.offset + len(chunk)]
        for chunk in hashes.chunks
        if len(chunk)
    ]
    return np.concatenate(arrays) if arrays else np.empty(0, f"S{width}")
