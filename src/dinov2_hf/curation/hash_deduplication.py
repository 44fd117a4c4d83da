"""The second stage: repeated ids, equal files, and pictures of equal perceptual hashes go; one of them stays."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from .dropped_images import write_dropped
from .image_hashes import HASH_BITS, first_of_equal, first_similar_hash
from .ingest import QUALITY_COLUMNS, quality_of
from .manifests import UnfinishedShard
from .run_context import Curation


def hash_deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Write the row ids that are left: `uncurated.npy`, `curated.npy` and `benchmark.npy`.

    Only the pool is deduplicated; ids must be unique within each role. What stays is the smallest row, or with
    `representative: best_quality` the best picture.
    """
    write_dropped(_repeats(curation, shard), shard.folder)


def _repeats(curation: Curation, shard: UnfinishedShard) -> Iterator[pa.Table]:
    """The records of what is dropped; writes what is left."""
    arguments, sources = curation.arguments, curation.sources
    has_ids = any(source.id_column for source in sources.sources)
    by_quality = arguments.representative == "best_quality"
    columns = ["row_id", "source", "content_hash", "perceptual_hash"]
    facts = curation.images([*columns, *(["id"] if has_ids else []), *(QUALITY_COLUMNS if by_quality else [])])
    for role in ("uncurated", "curated", "benchmark"):
        of_role = [number for number, other in enumerate(sources.roles) if other == role]
        table = facts.filter(np.isin(facts["source"].to_numpy(), of_role))
        if by_quality:
            table = table.take(np.lexsort((table["row_id"].to_numpy(), -quality_of(table))))
        if has_ids:
            table, gone, others = _split(table, first_of_equal(np.array(table["id"].to_pylist(), dtype=object)))
            yield from curation.dropped("hash_deduplicate", gone, "same id", others)
        if role == "uncurated" and arguments.deduplicate_content:
            table, gone, others = _split(table, first_of_equal(_as_bytes(table["content_hash"])))
            yield from curation.dropped("hash_deduplicate", gone, "same file", others, np.ones(len(gone)))
        if role == "uncurated" and arguments.perceptual_hash_distance is not None:
            hashes = table["perceptual_hash"].to_numpy()
            first, distances = first_similar_hash(hashes, arguments.perceptual_hash_distance)
            alike = 1 - distances[first != np.arange(len(first))] / HASH_BITS
            table, gone, others = _split(table, first)
            yield from curation.dropped("hash_deduplicate", gone, "same perceptual hash", others, alike)
        left = np.sort(table["row_id"].to_numpy())
        np.save(shard.folder / f"{role}.npy", left)
        shard.rows += len(left)


def _split(table: pa.Table, first: np.ndarray) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """What stays, and the row ids of what goes and of what each of those repeats.

    Args:
        first: (n,) the place of the first of its kind, for each row.
    """
    row_ids, stays = table["row_id"].to_numpy(), first == np.arange(len(first))
    return table.filter(stays), row_ids[~stays], row_ids[first[~stays]]


def _as_bytes(hashes: pa.ChunkedArray) -> np.ndarray:
    """(n,) fixed-width bytes, as they lie in memory."""
    width = hashes.type.byte_width
    arrays = [
        np.frombuffer(chunk.buffers()[1], f"S{width}")[chunk.offset : chunk.offset + len(chunk)]
        for chunk in hashes.chunks
        if len(chunk)
    ]
    return np.concatenate(arrays) if arrays else np.empty(0, f"S{width}")
