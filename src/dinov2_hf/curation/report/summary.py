"""What happened to the images, in numbers (`report.json`) and to look at (`report.html`)."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ...public_names import without_secrets
from ..algorithms.similarity_counts import load_counts
from ..arguments import ENGINE_FIELDS
from ..completeness import check_complete, written_row_ids
from ..run_context import Curation
from ..stages.stand_ins import amend_dropped, load_stand_ins
from ..storage.dataset_files import content_fingerprint, read_report
from ..storage.dropped_images import DROPPED_SCHEMA, ROWS_AT_ONCE, read_dropped
from ..storage.manifests import UnfinishedShard
from ..storage.source_contents import contents_of
from .dataset_card import dataset_card
from .page import render_page
from .pictures import MOST_REASONS, Pictures, draw_histogram, example_groups, kept_examples


# Stages that drop images, and what to call them.
DROPPING_STAGES = {
    "ingest": "read and filtered",
    "hash_deduplicate": "no equal files or hashes",
    "embed": "embedded",
    "deduplicate": "no copies in the pool",
    "relative_deduplicate": "nothing like a benchmark",
    "retrieval_embed": "embedded for retrieval",
    "select": "selected",
    "build": "written",
}
COUNTED_REASONS = 10_000  # a filter may say something else of each of a billion images


def report_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Gather all stages: `dropped.parquet`, `report.json`, `report.html` and the dataset's `README.md`."""
    written = written_row_ids(curation)
    dropped = _gather_dropped(curation, shard)
    check_complete(curation, dropped.times, written)
    report = gather_report(curation, dropped.counts, written)
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    histograms = {
        title: draw_histogram(title, histogram)
        for title, histogram in report["histograms"].items()
        if sum(histogram["bins"])
    }
    pictures = Pictures(curation)
    page = render_page(
        report,
        histograms=histograms,
        kept=kept_examples(curation, pictures),
        dropped=example_groups(curation, pictures, dropped.some, dropped.counts),
    )
    (shard.folder / "report.html").write_text(page, encoding="utf-8")
    (shard.folder / "README.md").write_text(dataset_card(curation.arguments, report), encoding="utf-8")
    shard.rows = sum(dropped.counts.values())


@dataclass
class Dropped:
    """What `dropped.parquet` holds, which can be more than memory does.

    Attributes:
        counts: images by (stage, source, group of reasons).
        times: (number of all images,) how often each occurs.
        some: rows to show examples of, all where they are few: the first `ROWS_AT_ONCE` of each stage.
    """

    counts: Counter
    times: np.ndarray
    some: pa.Table


def _gather_dropped(curation: Curation, shard: UnfinishedShard) -> Dropped:
    """Write `dropped.parquet` of all stages."""
    counts, some = Counter(), [DROPPED_SCHEMA.empty_table()]
    times = np.zeros(len(curation.sources), np.uint8)
    stand_ins = load_stand_ins(curation)
    with parquet.ParquetWriter(shard.folder / "dropped.parquet", DROPPED_SCHEMA) as writer:
        for name in DROPPING_STAGES:
            if name not in curation.folders:
                continue
            files = [path for path in curation.folders[name].files("dropped.parquet") if path.exists()]
            shown = 0
            for table in read_dropped(files):
                if name == "hash_deduplicate":
                    table = amend_dropped(curation, table, stand_ins)
                writer.write_table(table)
                np.add.at(times, table["row_id"].to_numpy(), 1)
                some.append(table.slice(0, ROWS_AT_ONCE - shown))
                shown += len(some[-1])
                grouped = table.group_by(["stage", "source", "reason"]).aggregate([("row_id", "count")])
                for row in grouped.to_pylist():
                    key = (row["stage"], row["source"], reason_group(row["reason"]))
                    if key not in counts and len(counts) >= COUNTED_REASONS:
                        key = (row["stage"], row["source"], "other reasons")
                    counts[key] += row["row_id_count"]
    return Dropped(counts, times, pa.concat_tables(some))


def gather_report(curation: Curation, dropped: Counter, written: np.ndarray) -> dict[str, Any]:
    """The numbers: plain values, ready for JSON.

    Args:
        dropped: images by (stage, source, group of reasons).
        written: row ids of the images of the dataset, with the repeats of a multiset.
    """
    images = np.unique(written)
    selection = read_report(curation, "select")
    of_pool = int(_of_role(curation, images, "uncurated").sum())
    return {
        "dataset": {
            "rows": len(written),
            "images": len(images),
            "from_the_pool": of_pool,
            "curated_as_they_are": len(images) - of_pool,
            "accounting": curation.arguments.accounting,
            "fingerprint": content_fingerprint(curation),
            "retrieved_union": selection.get("unique"),
            "retrieved_multiset": selection.get("multiset"),
        },
        "funnel": _funnel(curation, dropped),
        "sources": _sources(curation, dropped, written, images),
        "deduplicate": read_report(curation, "deduplicate"),
        "relative_deduplicate": read_report(curation, "relative_deduplicate"),
        "select": selection,
        "histograms": _histograms(curation),
        "configuration": _configuration(curation),
    }


def _of_role(curation: Curation, row_ids: np.ndarray, role: str) -> np.ndarray:
    """(n,) bool: which of the rows are of sources of this role."""
    roles = np.array(curation.sources.roles)
    return roles[np.searchsorted(curation.sources.starts, row_ids, side="right") - 1] == role


def reason_group(reason: str) -> str:
    """A reason without what differs from image to image, such as the words of a decoder."""
    return reason.split(":")[0]


def _funnel(curation: Curation, dropped: Counter) -> list[dict[str, Any]]:
    """What went into each stage from the pool, and what came out."""
    sources = curation.sources
    pool = [source.name for source, role in zip(sources.sources, sources.roles, strict=True) if role == "uncurated"]
    left = sources.rows_of("uncurated")
    counts: dict[str, Counter] = {}
    for (stage, source, reason), count in dropped.items():
        if source in pool:
            counts.setdefault(stage, Counter())[reason] += count
    funnel = []
    for stage, title in DROPPING_STAGES.items():
        if stage not in curation.folders:
            continue
        found = counts.get(stage, Counter())
        gone = found.total()
        reasons = dict(found.most_common(MOST_REASONS))
        if len(found) > MOST_REASONS:
            reasons["other reasons"] = gone - sum(reasons.values())
        funnel.append(
            {"stage": stage, "title": title, "images_in": left, "images_out": left - gone, "dropped": reasons}
        )
        left -= gone
    return funnel


def _sources(curation: Curation, dropped: Counter, written: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
    """How each source fared: its rows, what stages dropped of it, and what of it is in the dataset."""
    sources, retrieved = curation.sources, _retrieved_for(curation, images)
    described = []
    for number, source in enumerate(sources.sources):
        lost = Counter()
        for (stage, name, _), count in dropped.items():
            if name == source.name:
                lost[stage] += count
        rows = sources.range_of(number)
        described.append(
            {
                "name": source.name,
                "role": sources.roles[number],
                "images": len(rows),
                "dropped": dict(lost),
                "in_dataset": _inside(images, rows),
                "rows_of_dataset": _inside(written, rows),
                "retrieved_for_it": int(retrieved[number]),
                **contents_of(sources, number),
            }
        )
    return described


def _inside(row_ids: np.ndarray, rows: range) -> int:
    return int(((row_ids >= rows.start) & (row_ids < rows.stop)).sum())


def _retrieved_for(curation: Curation, images: np.ndarray) -> np.ndarray:
    """By number of the source, how many images of the dataset it brought; one that two brought counts for both."""
    path = curation.folders["select"].shard(0) / "selected.parquet"
    table = parquet.read_table(path, columns=["row_id", "retrieved_for"])
    table = table.filter(np.isin(table["row_id"].to_numpy(), images))
    numbers = pc.list_flatten(table["retrieved_for"]).to_numpy()
    return np.bincount(numbers, minlength=len(curation.sources.sources))


def _histograms(curation: Curation) -> dict[str, dict[str, Any]]:
    """Similarities by title, with the threshold that decided: `SimilarityCounts`, and what to say of them."""
    arguments = curation.arguments
    asked = {
        "search_copies": (
            "Nearest other image of the pool", "nearest.json", arguments.deduplication_threshold, "above",
            "images with a copy above", "images",
        ),
        "search_benchmarks": (
            "Nearest benchmark image", "nearest.json", arguments.benchmark_threshold, "above",
            "images that resemble one above", "images",
        ),
        "select": (
            "Image of the pool and the curated image it was found for", "similarities.json", arguments.min_similarity,
            "below", "pairs not retrieved below", "pairs",
        ),
    }  # fmt: skip
    histograms = {}
    for stage, (title, name, threshold, side, label, unit) in asked.items():
        files = (
            [path for path in curation.folders[stage].files(name) if path.exists()]
            if stage in curation.folders
            else []
        )
        if files:
            has_threshold = side == "above" or threshold > -1
            histograms[title] = {
                **asdict(load_counts(files)), "threshold": threshold if has_threshold else None, "side": side,
                "label": label, "unit": unit,
            }  # fmt: skip
    return histograms


def _configuration(curation: Curation) -> dict[str, Any]:
    """What was asked for, without what does not change the result, and of paths only the last part."""
    values = vars(curation.arguments)
    shown = {name: value for name, value in values.items() if name not in ENGINE_FIELDS}
    for role in ("uncurated", "curated", "benchmarks"):
        wanted = {"benchmarks": "benchmark"}.get(role, role)
        shown[role] = [source.name for given, source in curation.arguments.sources if given == wanted]
    for name in ("embedder", "retrieval_embedder", "nsfw_model", "face_model"):
        if shown[name] is not None and "/" in shown[name] and shown[name].count("/") != 1:
            shown[name] = shown[name].rstrip("/").rsplit("/", 1)[-1]
    return without_secrets(json.loads(json.dumps(shown, default=str)))
