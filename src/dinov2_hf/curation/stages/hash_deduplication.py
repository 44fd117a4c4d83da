"""The second stage: repeated ids, equal files, and pictures of equal perceptual hashes go; one of them stays."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..algorithms.image_hashes import HASH_BITS, first_of_equal, first_similar_hash
from ..run_context import Curation
from ..storage.dropped_images import write_dropped
from ..storage.manifests import UnfinishedShard
from .ingest import QUALITY_COLUMNS, quality_of


def hash_deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Write the row ids that are left: `uncurated.npy`, `curated.npy` and `benchmark.npy`.

    `copies.npy`, (m, 2), has row ids of equal files and hashes of the pool, and of the image that stays for each: in
    the order of the latter, the best copies of an image first.

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
            table, repeats = _split(table, first_of_equal(np.array(table["id"].to_pylist(), dtype=object)))
            yield from curation.dropped("hash_deduplicate", repeats.rows, "same id", repeats.of)
        before, stays_for = table["row_id"].to_numpy(), {}
        if role == "uncurated" and arguments.deduplicate_content:
            first = first_of_equal(_as_bytes(table["content_hash"]))
            table, repeats = _split(table, first, np.ones(len(first)))
            stays_for.update(zip(repeats.rows.tolist(), repeats.of.tolist(), strict=True))
            yield from curation.dropped("hash_deduplicate", repeats.rows, "same file", repeats.of, repeats.alike)
        if role == "uncurated" and arguments.perceptual_hash_distance is not None:
            hashes = table["perceptual_hash"].to_numpy()
            first, distances = first_similar_hash(hashes, arguments.perceptual_hash_distance)
            table, repeats = _split(table, first, 1 - distances / HASH_BITS)
            stays_for.update(zip(repeats.rows.tolist(), repeats.of.tolist(), strict=True))
            yield from curation.dropped(
                "hash_deduplicate", repeats.rows, "same perceptual hash", repeats.of, repeats.alike
            )
        if role == "uncurated":
            np.save(shard.folder / "copies.npy", _copies(before, stays_for))
        left = np.sort(table["row_id"].to_numpy())
        np.save(shard.folder / f"{role}.npy", left)
        shard.rows += len(left)


def _copies(row_ids: np.ndarray, stays_for: dict[int, int]) -> np.ndarray:
    """(m, 2) copies and what stays for each.

    Args:
        row_ids: of the pool, the best first.
        stays_for: for each copy another image; that of an equal file can be a copy of an equal hash itself.
    """
    pairs = [(row, stays_for.get(stays_for[row], stays_for[row])) for row in row_ids.tolist() if row in stays_for]
    return np.array(sorted(pairs, key=lambda pair: pair[1]), dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Repeats:
    """Row ids that go, ascending, those they repeat, and how alike they are."""

    rows: np.ndarray
    of: np.ndarray
    alike: np.ndarray | None


def _split(table: pa.Table, first: np.ndarray, alike: np.ndarray | None = None) -> tuple[pa.Table, Repeats]:
    """What stays, and what goes.

    Args:
        first: (n,) the place of the first of its kind, for each row.
        alike: (n,) similarity to that.
    """
    row_ids, stays = table["row_id"].to_numpy(), first == np.arange(len(first))
    gone = np.flatnonzero(~stays)
    gone = gone[np.argsort(row_ids[gone])]
    return table.filter(stays), Repeats(row_ids[gone], row_ids[first[gone]], None if alike is None else alike[gone])


def _as_bytes(hashes: pa.ChunkedArray) -> np.ndarray:
    """(n,) fixed-width bytes, as they lie in memory."""
    width = hashes.type.byte_width
    arrays = [
        np.frombuffer(chunk.buffers()[1], f"S{width}")[chunk.offset : chunk.offset + len(chunk)]
        for chunk in hashes.chunks
        if len(chunk)
    ]
    return np.concatenate(arrays) if arrays else np.empty(0, f"S{width}")
