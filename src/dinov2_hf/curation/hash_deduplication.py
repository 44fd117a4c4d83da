"""The second stage: repeated ids, equal files, and pictures of equal perceptual hashes go; the first of them stays."""

import numpy as np
import pyarrow as pa

from .dropped_images import DROPPED_SCHEMA, write_dropped
from .image_hashes import HASH_BITS, first_of_equal, first_similar_hash
from .manifests import UnfinishedShard
from .run_context import Curation


def hash_deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Write the row ids that are left: `uncurated.npy`, `curated.npy` and `benchmark.npy`.

    Only the pool is deduplicated; ids must be unique within each role.
    """
    arguments, sources = curation.arguments, curation.sources
    facts = curation.images(["row_id", "id", "source", "content_hash", "perceptual_hash"])
    roles = np.array(sources.roles)[facts["source"].to_numpy()] if len(facts) else np.empty(0, str)
    dropped = []
    for role in ("uncurated", "curated", "benchmark"):
        table = facts.filter(roles == role)
        row_ids = table["row_id"].to_numpy()
        left = np.arange(len(table))

        def drop(first: np.ndarray, reason: str, similarities=None, left=left, row_ids=row_ids) -> np.ndarray:
            """Drop what is not the first of its kind; returns a mask of what stays."""
            gone = first != np.arange(len(first))
            alike = np.ones(gone.sum()) if similarities is None else similarities[gone]
            ids = row_ids[left]
            dropped.append(curation.dropped("hash_deduplicate", ids[gone], reason, ids[first[gone]], alike))
            return ~gone

        if any(source.id_column for source in sources.sources):
            left = left[drop(first_of_equal(np.array(table["id"].to_pylist(), dtype=object).astype(str)), "same id")]
        if role == "uncurated" and arguments.deduplicate_content:
            hashes = np.array(table["content_hash"].take(left).to_pylist(), dtype="S16")
            left = left[drop(first_of_equal(hashes), "same file", left=left)]
        if role == "uncurated" and arguments.perceptual_hash_distance is not None:
            hashes = table["perceptual_hash"].take(left).to_numpy()
            first, distances = first_similar_hash(hashes, arguments.perceptual_hash_distance)
            left = left[drop(first, "same perceptual hash", 1 - distances / HASH_BITS, left=left)]
        np.save(shard.folder / f"{role}.npy", row_ids[left])
        shard.rows += len(left)
    write_dropped(pa.concat_tables([DROPPED_SCHEMA.empty_table(), *dropped]), shard.folder)
