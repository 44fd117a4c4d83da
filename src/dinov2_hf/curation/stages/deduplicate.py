"""Stages of one shard that drop copies: of images of the pool, and of benchmark images (paper, section 3)."""

import json

import numpy as np

from ..algorithms.deduplication import deduplicate as deduplicated
from ..algorithms.deduplication import deduplicate_against
from ..run_context import Curation
from ..storage.dropped_images import Dropped
from ..storage.manifests import UnfinishedShard
from .index import pool_of
from .ingest import QUALITY_COLUMNS, quality_of
from .search import load_edges
from .stage import POOL, stage


@stage("deduplicate", title="no copies in the pool", needs=["search_copies"])
def deduplicate(
    curation: Curation, shard: UnfinishedShard, *, deduplication_threshold: float, representative: str,
    split_chains: bool,
) -> Dropped:  # fmt: skip
    """Keep one image of each group of copies; `report.json` tells of the groups."""
    pool = curation.pool_vectors()
    ids, quality = pool.ids, None
    if representative == "best_quality":
        quality = quality_of(curation.facts(ids, QUALITY_COLUMNS))
    found = deduplicated(
        pool,
        load_edges(curation, "search_copies"),
        threshold=deduplication_threshold,
        ids=ids,
        quality=quality,
        split_chains=split_chains,
    )
    for component in found.report["largest_components"]:
        component["representative"] = int(ids[component["representative"]])
    (shard.folder / "report.json").write_text(json.dumps(found.report, indent=1))
    # Of a chain, in which each is a copy of the next, the ends need not resemble each other.
    texts = (
        f"end of a chain of copies (cosine > {deduplication_threshold} from one to the next)",
        f"copy in the pool (cosine > {deduplication_threshold})",
    )
    reasons = np.array(texts, dtype=object)[(found.similarities > deduplication_threshold).astype(int)]
    return Dropped(ids[found.dropped], reasons, ids[found.duplicate_of], found.similarities)


@stage(
    "relative_deduplicate",
    title="nothing like a benchmark",
    needs=[POOL, "search_benchmarks"],
    is_wanted=lambda curation: bool(curation.arguments.benchmarks),
)
def relative_deduplicate(curation: Curation, shard: UnfinishedShard, *, benchmark_threshold: float) -> Dropped:
    """Drop the groups that a benchmark image touches, whole; `report.json` tells of them."""
    pool, references = curation.pool_vectors(), pool_of(curation, "benchmarks")
    ids, present = pool.ids, np.zeros(len(pool), bool)
    present[curation.left()[1]] = True
    found = deduplicate_against(
        pool,
        references,
        load_edges(curation, "search_copies").between(present),
        load_edges(curation, "search_benchmarks"),
        threshold=benchmark_threshold,
    )
    report = {**found.report, "rows": int(present.sum()), "kept": int((present & found.kept).sum())}
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    texts = (
        "copy of an image that resembles a benchmark",
        f"resembles a benchmark (cosine > {benchmark_threshold})",
    )
    reasons = np.array(texts, dtype=object)[(found.similarities > benchmark_threshold).astype(int)]
    return Dropped(ids[found.dropped], reasons, references.ids[found.duplicate_of], found.similarities)
