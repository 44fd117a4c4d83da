"""Stages of one shard that drop copies: of images of the pool, and of benchmark images (paper, section 3)."""

import json

import numpy as np

from .deduplication import deduplicate, deduplicate_against
from .dropped_images import write_dropped
from .ingest import quality_of
from .manifests import UnfinishedShard
from .run_context import Curation
from .search_stages import load_edges


def deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Keep one image of each group of copies: `kept.npy` (row ids), `dropped.parquet`, `report.json`."""
    arguments, pool = curation.arguments, curation.pool_vectors("embed")
    ids, quality = pool.ids, None
    if arguments.representative == "best_quality":
        facts = curation.images(["row_id", "width", "height", "num_bytes"])
        quality = quality_of(facts.take(np.searchsorted(facts["row_id"].to_numpy(), ids)))
    result = deduplicate(
        pool,
        load_edges(curation.folders["search_copies"].files("edges.npz")),
        threshold=arguments.deduplication_threshold,
        ids=ids,
        quality=quality,
        split_chains=arguments.split_chains,
    )
    np.save(shard.folder / "kept.npy", np.sort(ids[result.kept]))
    report = result.report
    for component in report["largest_components"]:
        component["representative"] = int(ids[component["representative"]])
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    reason = f"copy in the pool (cosine > {arguments.deduplication_threshold})"
    write_dropped(
        curation.dropped("deduplicate", ids[result.dropped], reason, ids[result.duplicate_of], result.similarities),
        shard.folder,
    )
    shard.rows = int(result.kept.sum())


def relative_deduplicate_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Drop the groups that a benchmark image touches: `kept.npy` (row ids), `dropped.parquet`, `report.json`."""
    arguments, pool = curation.arguments, curation.pool_vectors("embed")
    references = curation.vectors("embed", "benchmark")
    if references is None:
        raise ValueError("benchmarks hold no image that could be read and embedded.")
    ids, left = pool.ids, curation.array("deduplicate", "kept")
    present = np.isin(ids, left)
    result = deduplicate_against(
        pool,
        references,
        load_edges(curation.folders["search_copies"].files("edges.npz")).between(present),
        load_edges(curation.folders["search_benchmarks"].files("edges.npz")),
        threshold=arguments.benchmark_threshold,
    )
    kept = present & result.kept
    np.save(shard.folder / "kept.npy", np.sort(ids[kept]))
    report = {**result.report, "rows": int(present.sum()), "kept": int(kept.sum())}
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    direct = result.similarities > arguments.benchmark_threshold
    reasons = [
        f"resembles a benchmark (cosine > {arguments.benchmark_threshold})" if near
        else "copy of an image that resembles a benchmark"
        for near in direct
    ]  # fmt: skip
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
    shard.rows = int(kept.sum())
