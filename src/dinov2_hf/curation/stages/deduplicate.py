"""Stages of one shard that drop copies: of images of the pool, and of benchmark images (paper, section 3)."""

import json

import numpy as np

from ..algorithms.deduplication import deduplicate, deduplicate_against
from ..run_context import Curation
from ..storage.dropped_images import write_dropped
from ..storage.manifests import UnfinishedShard
from .ingest import QUALITY_COLUMNS, quality_of
from .search import load_edges, pool_of


def deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Keep one image of each group of copies.

    Files: `kept.npy` (row ids), `kept_rows.npy` (rows of the pool's vectors), `dropped.parquet`, `report.json`.
    """
    arguments, pool = curation.arguments, curation.pool_vectors("embed")
    ids, quality = pool.ids, None
    if arguments.representative == "best_quality":
        quality = quality_of(curation.facts(ids, QUALITY_COLUMNS))
    result = deduplicate(
        pool,
        load_edges(curation.folders["search_copies"].files("edges.npz")),
        threshold=arguments.deduplication_threshold,
        ids=ids,
        quality=quality,
        split_chains=arguments.split_chains,
    )
    _save_kept(ids, result.kept, shard)
    report = result.report
    for component in report["largest_components"]:
        component["representative"] = int(ids[component["representative"]])
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    threshold = arguments.deduplication_threshold
    # Of a chain, in which each is a copy of the next, the ends need not resemble each other.
    texts = (
        f"end of a chain of copies (cosine > {threshold} from one to the next)",
        f"copy in the pool (cosine > {threshold})",
    )
    reasons = np.array(texts, dtype=object)[(result.similarities > threshold).astype(int)]
    write_dropped(
        curation.dropped("deduplicate", ids[result.dropped], reasons, ids[result.duplicate_of], result.similarities),
        shard.folder,
    )


def _save_kept(ids: np.ndarray, kept: np.ndarray, shard: UnfinishedShard) -> None:
    """Row ids in rising order, and their rows: stand-ins lie among the vectors of the images they stand for."""
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(ids[rows])]
    np.save(shard.folder / "kept.npy", ids[rows])
    np.save(shard.folder / "kept_rows.npy", rows)
    shard.rows = int(kept.sum())


def relative_deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Drop the groups that a benchmark image touches; files as of `deduplicate_shard`."""
    arguments, pool = curation.arguments, curation.pool_vectors("embed")
    references = pool_of(curation, "benchmarks")
    ids, present = pool.ids, np.zeros(len(pool), bool)
    present[curation.array("deduplicate", "kept_rows")] = True
    result = deduplicate_against(
        pool,
        references,
        load_edges(curation.folders["search_copies"].files("edges.npz")).between(present),
        load_edges(curation.folders["search_benchmarks"].files("edges.npz")),
        threshold=arguments.benchmark_threshold,
    )
    kept = present & result.kept
    _save_kept(ids, kept, shard)
    report = {**result.report, "rows": int(present.sum()), "kept": int(kept.sum())}
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    direct = result.similarities > arguments.benchmark_threshold
    texts = (
        "copy of an image that resembles a benchmark",
        f"resembles a benchmark (cosine > {arguments.benchmark_threshold})",
    )
    reasons = np.array(texts, dtype=object)[direct.astype(int)]
    write_dropped(
        curation.dropped(
            "relative_deduplicate",
            ids[result.dropped],
            reasons,
            references.ids[result.duplicate_of],
            result.similarities,
        ),
        shard.folder,
    )
