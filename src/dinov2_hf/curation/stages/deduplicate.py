"""Stages of one shard that drop copies: of images of the pool, and of benchmark images (paper, section 3)."""

import json

import numpy as np

from ..algorithms.deduplication import Edges, deduplicate_against, pair_similarities
from ..algorithms.deduplication import deduplicate as deduplicated
from ..algorithms.histograms import Histogram, histogram
from ..algorithms.threshold_evidence import (
    copies_at,
    each_pair_once,
    other_thresholds,
    pairs_beside,
    threshold_table,
)
from ..algorithms.unit_vectors import ChosenRows
from ..algorithms.unlike_pairs import sample_unlike_pairs
from ..run_context import Curation
from ..storage.dropped_images import Dropped
from ..storage.edge_files import load_edges
from ..storage.histogram_files import save_histogram
from ..storage.manifests import UnfinishedShard
from .ingest import QUALITY_COLUMNS, quality_of
from .pool_parts import knows_all_neighbors
from .queries import floor_of, pool_of
from .stage import POOL, stage


@stage("deduplicate", title="no copies in the pool", needs=["search_copies"])
def deduplicate(
    curation: Curation, shard: UnfinishedShard, *, deduplication_threshold: float, representative: str,
    split_chains: bool, seed: int,
) -> Dropped:  # fmt: skip
    """Keep one image of each group of copies. `report.json` describes the groups; `stays_for.npy`, (n,), has for each
    row the row that stays for it."""
    pool = curation.pool_vectors()
    ids, quality = pool.ids, None
    if representative == "best_quality":
        quality = quality_of(curation.facts(ids, QUALITY_COLUMNS))
    edges = load_edges(curation.folders["search_copies"])
    found = deduplicated(
        pool,
        edges,
        threshold=deduplication_threshold,
        ids=ids,
        quality=quality,
        split_chains=split_chains,
    )
    for component in found.report["largest_components"]:
        component["representative"] = int(ids[component["representative"]])
    thresholds = other_thresholds(deduplication_threshold)
    unlike = sample_unlike_pairs(ChosenRows(pool, np.flatnonzero(found.kept)), seed=seed)
    dropped = [copies_at(edges, threshold) for threshold in thresholds]
    found.report["thresholds"] = threshold_table(thresholds, dropped, unlike, len(pool), len(pool) - 1)
    found.report["pairs_beside_threshold"] = _row_ids(
        pairs_beside(each_pair_once(edges), deduplication_threshold), ids, ids
    )
    (shard.folder / "report.json").write_text(json.dumps(found.report, indent=1))
    save_histogram(_nearest_others(curation, edges, deduplication_threshold), shard.folder)
    stays_for = np.arange(len(pool))
    stays_for[found.dropped] = found.duplicate_of
    np.save(shard.folder / "stays_for.npy", stays_for)
    # In a chain each image is a copy of the next, but the ends need not resemble each other.
    texts = (
        f"end of a chain of copies (cosine > {deduplication_threshold} from one to the next)",
        f"copy in the pool (cosine > {deduplication_threshold})",
    )
    reasons = np.array(texts, dtype=object)[(found.similarities > deduplication_threshold).astype(int)]
    return Dropped(ids[found.dropped], reasons, ids[found.duplicate_of], found.similarities)


def _nearest_others(curation: Curation, edges: Edges, threshold: float) -> Histogram:
    """The histogram of the cosine between each image of the pool and its nearest other."""
    nearest = np.concatenate([np.load(path) for path in curation.folders["search_copies"].files("nearest.npy")])
    # Each image was compared with earlier ones only, so an edge counts for both of its images.
    for ends in (edges.rows, edges.others):
        np.maximum.at(nearest, ends, edges.similarities)
    floor = None if knows_all_neighbors(curation) else floor_of(curation.arguments, "copies")
    if floor is not None:
        nearest[nearest <= floor] = -np.inf
    title = "Nearest other image of the pool"
    return histogram(nearest, threshold, title, label="images with a copy above", floor=floor)


@stage(
    "drop_curated_copies",
    title="no copies of curated images",
    needs=[POOL, "deduplicate", "search_curated_copies"],
    step="deduplicate",
    is_wanted=lambda curation: curation.arguments.excludes_copies_of_curated,
)
def drop_curated_copies(curation: Curation, shard: UnfinishedShard, *, deduplication_threshold: float) -> Dropped:
    """Drop images that repeat a curated image of the dataset, and images that stay for one that does."""
    pool, (curated_ids, curated) = curation.pool_vectors(), curation.included_vectors()
    edges, stays_for = (
        load_edges(curation.folders["search_curated_copies"]),
        curation.array("deduplicate", "stays_for"),
    )
    rows = curation.left()[1]
    order = np.lexsort((edges.others, -edges.similarities))  # the most similar first
    repeated, first = np.unique(stays_for[edges.rows[order]], return_index=True)
    others = edges.others[order][first]
    is_left = np.isin(repeated, rows)
    repeated, others = repeated[is_left], others[is_left]
    similarities = pair_similarities(pool, repeated, curated, others) if len(repeated) else np.empty(0, np.float32)
    texts = (
        "copy of an image that repeats a curated one",
        f"copy of a curated image (cosine > {deduplication_threshold})",
    )
    reasons = np.array(texts, dtype=object)[(similarities > deduplication_threshold).astype(int)]
    return Dropped(pool.ids[repeated], reasons, curated_ids[others], similarities)


@stage(
    "drop_leaks",
    title="no curated images like a benchmark",
    writes_left=True,
    needs=[POOL, "search_leaks"],
    step="build",
    is_wanted=lambda curation: (
        curation.arguments.finds_leaks and curation.arguments.exclude_benchmark_copies_of_curated
    ),
)
def drop_leaks(curation: Curation, shard: UnfinishedShard, *, benchmark_threshold: float) -> Dropped:
    """Leave curated images that resemble a benchmark image out of the dataset: `leaks.npy` has their row ids.

    Images were retrieved for them, but none that resembles a benchmark image: the pool was cleaned before.
    """
    leaks = leaks_of_curated(curation)
    np.save(shard.folder / "leaks.npy", leaks.row_ids)
    shard.rows = len(leaks.row_ids)
    return leaks


def leaks_of_curated(curation: Curation) -> Dropped:
    """The curated images that go into the dataset and resemble a benchmark image, and which image that is."""
    edges = load_edges(curation.folders["search_leaks"])
    row_ids, references = curation.included_vectors()[0], pool_of(curation, "benchmarks").ids
    reason = f"curated image that resembles a benchmark (cosine > {curation.arguments.benchmark_threshold})"
    return Dropped(row_ids[edges.rows], reason, references[edges.others], edges.similarities)


@stage(
    "relative_deduplicate",
    title="nothing like a benchmark",
    needs=[POOL, "search_survivors", "search_benchmarks"],
    is_wanted=lambda curation: bool(curation.arguments.benchmarks),
)
def relative_deduplicate(
    curation: Curation, shard: UnfinishedShard, *, benchmark_threshold: float, seed: int
) -> Dropped:
    """Drop each whole group that a benchmark image touches; `report.json` describes them."""
    pool, references = curation.pool_vectors(), pool_of(curation, "benchmarks")
    ids, present = pool.ids, np.zeros(len(pool), bool)
    present[curation.left()[1]] = True
    touching = load_edges(curation.folders["search_benchmarks"])
    found = deduplicate_against(
        pool,
        references,
        Edges.joined(
            [
                load_edges(curation.folders["search_copies"]).between(present),
                load_edges(curation.folders["search_survivors"]),
            ]
        ),
        touching,
        threshold=benchmark_threshold,
    )
    left, thresholds = ChosenRows(pool, np.flatnonzero(present)), other_thresholds(benchmark_threshold)
    unlike = sample_unlike_pairs(ChosenRows(pool, np.flatnonzero(present & found.kept)), references, seed=seed)
    direct = [len(touching.above(threshold)) for threshold in thresholds]
    hits = np.bincount(
        curation.source_numbers(references.ids[found.duplicate_of]), minlength=len(curation.sources.sources)
    )
    report = {
        **found.report,
        "rows": len(left),
        "kept": int((present & found.kept).sum()),
        "dropped_by_benchmark": {
            source.name: int(hits[number])
            for number, (role, source) in enumerate(curation.arguments.sources)
            if role == "benchmark"
        },
        "thresholds": threshold_table(thresholds, direct, unlike, len(left), len(references)),
        "pairs_beside_threshold": _row_ids(pairs_beside(touching, benchmark_threshold), ids, references.ids),
    }
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    texts = (
        "copy of an image that resembles a benchmark",
        f"resembles a benchmark (cosine > {benchmark_threshold})",
    )
    reasons = np.array(texts, dtype=object)[(found.similarities > benchmark_threshold).astype(int)]
    return Dropped(ids[found.dropped], reasons, references.ids[found.duplicate_of], found.similarities)


def _row_ids(pairs: dict[str, Edges], ids: np.ndarray, other_ids: np.ndarray) -> dict[str, list[list]]:
    """[row id, other row id, cosine] of the pairs on each side of a threshold."""
    return {
        side: [
            [int(ids[row]), int(other_ids[other]), round(float(cosine), 4)]
            for row, other, cosine in zip(edges.rows, edges.others, edges.similarities, strict=True)
        ]
        for side, edges in pairs.items()
    }
