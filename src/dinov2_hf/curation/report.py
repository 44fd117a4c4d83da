"""What happened to the images, in numbers (`report.json`) and to look at (`report.html`)."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from .arguments import ENGINE_FIELDS
from .dataset_card import dataset_card
from .dataset_files import chosen_rows, publish_files, read_report
from .dropped_images import read_dropped
from .manifests import UnfinishedShard
from .report_page import render_page
from .report_pictures import draw_histogram, example_groups, kept_examples
from .run_context import Curation
from .search_stages import HISTOGRAM_EDGES


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
PUBLISHED = ("report.html", "report.json", "dropped.parquet")


def report_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Gather all stages: `dropped.parquet`, `report.json`, `report.html` and the dataset's `README.md`."""
    stages = [name for name in DROPPING_STAGES if name in curation.folders]
    dropped = read_dropped(
        path for name in stages for path in curation.folders[name].files("dropped.parquet") if path.exists()
    )
    parquet.write_table(dropped, shard.folder / "dropped.parquet")
    report = gather_report(curation, dropped)
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    histograms = {
        title: draw_histogram(
            np.array(values["counts"]), title=title, threshold=values["threshold"], label=values["label"]
        )
        for title, values in report["histograms"].items()
        if sum(values["counts"])
    }
    page = render_page(
        report,
        histograms=histograms,
        kept=kept_examples(curation),
        dropped=example_groups(curation, dropped),
    )
    (shard.folder / "report.html").write_text(page, encoding="utf-8")
    (shard.folder / "README.md").write_text(dataset_card(curation.arguments, report), encoding="utf-8")
    shard.rows = len(dropped)


def publish(curation: Curation) -> None:
    """Put the report and the dataset where a user looks for them, in `output_dir`; again if they were deleted."""
    made = curation.folders["report"].shard(0)
    for name in PUBLISHED:
        (curation.output_dir / name).write_bytes((made / name).read_bytes())
    publish_files(curation, curation.output_dir / "dataset")
    (curation.output_dir / "dataset" / "README.md").write_bytes((made / "README.md").read_bytes())


def gather_report(curation: Curation, dropped: pa.Table) -> dict[str, Any]:
    """The numbers: plain values, ready for JSON."""
    chosen = chosen_rows(curation)
    build_rows = curation.folders["build"].rows()
    selection = read_report(curation, "select")
    return {
        "dataset": {
            "images": build_rows,
            "from_the_pool": int(pc.sum(pc.greater(chosen["times_retrieved"], 0)).as_py() or 0),
            "curated_as_they_are": int(pc.sum(pc.equal(chosen["times_retrieved"], 0)).as_py() or 0),
            "accounting": curation.arguments.accounting,
            "retrieved_union": selection.get("unique"),
            "retrieved_multiset": selection.get("multiset"),
        },
        "funnel": _funnel(curation, dropped),
        "sources": _sources(curation, dropped, chosen),
        "deduplicate": read_report(curation, "deduplicate"),
        "relative_deduplicate": read_report(curation, "relative_deduplicate"),
        "select": selection,
        "histograms": _histograms(curation),
        "configuration": _configuration(curation),
    }


def reason_group(reason: str) -> str:
    """A reason without what differs from image to image, such as the words of a decoder."""
    return reason.split(":")[0]


def _funnel(curation: Curation, dropped: pa.Table) -> list[dict[str, Any]]:
    """What went into each stage from the pool, and what came out."""
    sources = curation.sources
    pool = [source.name for source, role in zip(sources.sources, sources.roles, strict=True) if role == "uncurated"]
    left = sum(len(d) for d, role in zip(sources.datasets, sources.roles, strict=True) if role == "uncurated")
    counts: dict[str, dict[str, int]] = {}
    grouped = dropped.group_by(["stage", "source", "reason"]).aggregate([("row_id", "count")]).to_pylist()
    for row in grouped:
        if row["source"] in pool:
            reasons = counts.setdefault(row["stage"], {})
            group = reason_group(row["reason"])
            reasons[group] = reasons.get(group, 0) + row["row_id_count"]
    funnel = []
    for stage, title in DROPPING_STAGES.items():
        if stage not in curation.folders:
            continue
        reasons = dict(sorted(counts.get(stage, {}).items(), key=lambda item: -item[1]))
        gone = sum(reasons.values())
        funnel.append(
            {"stage": stage, "title": title, "images_in": left, "images_out": left - gone, "dropped": reasons}
        )
        left -= gone
    return funnel


def _sources(curation: Curation, dropped: pa.Table, chosen: pa.Table) -> list[dict[str, Any]]:
    """How each source fared: its rows, what stages dropped of it, and what of it is in the dataset."""
    sources = curation.sources
    row_ids = chosen["row_id"].to_numpy()
    lost = dropped.group_by(["source", "stage"]).aggregate([("row_id", "count")]).to_pylist()
    retrieved_for = pc.value_counts(chosen["retrieved_for"].combine_chunks()).to_pylist()
    brought = {entry["values"]: entry["counts"] for entry in retrieved_for}
    described = []
    for number, source in enumerate(sources.sources):
        of_source = sources.range_of(number)
        described.append(
            {
                "name": source.name,
                "role": sources.roles[number],
                "images": len(of_source),
                "dropped": {row["stage"]: row["row_id_count"] for row in lost if row["source"] == source.name},
                "in_dataset": int(((row_ids >= of_source.start) & (row_ids < of_source.stop)).sum()),
                "retrieved_for_it": brought.get(source.name, 0),
            }
        )
    return described


def _histograms(curation: Curation) -> dict[str, dict[str, Any]]:
    """Counts of similarities in bins of 0.01 from -1 to 1, with the threshold that decided."""
    arguments = curation.arguments
    asked = {
        "search_copies": (
            "Nearest other image of the pool", arguments.deduplication_threshold, "copies above", "nearest.npy",
        ),
        "search_benchmarks": (
            "Nearest benchmark image", arguments.benchmark_threshold, "left out above", "nearest.npy",
        ),
        "select": (
            "Retrieved image and its curated image",
            arguments.min_similarity if arguments.min_similarity > -1 else None,
            "not retrieved below",
            "similarities.npy",
        ),
    }  # fmt: skip
    histograms = {}
    for stage, (title, threshold, label, name) in asked.items():
        if stage in curation.folders:
            files = [path for path in curation.folders[stage].files(name) if path.exists()]
            counts = np.sum([np.zeros(len(HISTOGRAM_EDGES) - 1, np.int64), *(np.load(path) for path in files)], axis=0)
            histograms[title] = {"counts": counts.tolist(), "threshold": threshold, "label": label}
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
    return json.loads(json.dumps(shown, default=str))
