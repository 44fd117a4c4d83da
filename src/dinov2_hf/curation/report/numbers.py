"""The report on all images, as numbers (`report.json`) and as a page (`report.html`)."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ...public_names import without_secrets
from .. import pixels
from ..algorithms.histograms import Histogram, histogram
from ..arguments import ENGINE_FIELDS
from ..filters import PlannedFilter, planned_filters
from ..run_context import Curation
from ..stages.deduplicate import leaks_of_curated
from ..stages.index import searches
from ..stages.stage import POOL, stage
from ..stages.stand_ins import amend_dropped, load_stand_ins
from ..storage.dataset_files import content_fingerprint
from ..storage.dropped_images import DROPPED_SCHEMA, ROWS_AT_ONCE
from ..storage.histogram_files import load_histogram
from ..storage.manifests import StageFolder, UnfinishedShard
from ..storage.source_contents import contents_of
from .accounting import check_complete, written_row_ids
from .dataset_card import dataset_card
from .examples import (
    MOST_REASONS,
    Pictures,
    concept_examples,
    example_groups,
    kept_examples,
    leak_examples,
    threshold_examples,
)
from .histogram_pictures import draw_histogram
from .page import render_page
from .provenance import changed_options, provenance
from .sizes import sizes_before_and_after
from .warnings import warnings_of


MOST_PAIRS = 100  # of a source and a reason
COUNTED_REASONS = 10_000  # a filter may have a different reason for each of a billion images


@stage("report", needs=[POOL, "concepts"], step="build")
def report(curation: Curation, shard: UnfinishedShard, *, license: str | None) -> None:
    """Gather all stages: `dropped.parquet`, `report.json`, `report.html` and the dataset's `README.md`."""
    written = written_row_ids(curation)
    dropped = _gather_dropped(curation, shard)
    check_complete(curation, dropped.times, written)
    found = gather_report(curation, dropped.counts, written)
    (shard.folder / "report.json").write_text(json.dumps(found, indent=1))
    pictures = Pictures(curation)
    page = render_page(
        found,
        histograms=[draw_histogram(Histogram(**counts)) for counts in found["histograms"].values()],
        pairs=threshold_examples(found, pictures),
        leaks=leak_examples(curation, pictures),
        concepts=concept_examples(found, pictures),
        kept=kept_examples(curation, pictures),
        dropped=example_groups(curation, pictures, dropped.some, dropped.counts),
    )
    (shard.folder / "report.html").write_text(page, encoding="utf-8")
    (shard.folder / "README.md").write_text(dataset_card(curation.arguments, found), encoding="utf-8")
    shard.rows = sum(dropped.counts.values())


@dataclass
class AllDropped:
    """Summary of `dropped.parquet`, which can be larger than memory.

    Attributes:
        counts: numbers of images by (stage, source, group of reasons).
        times: (number of all images,) how often each occurs.
        some: rows for examples: the first `ROWS_AT_ONCE` of each stage.
    """

    counts: Counter
    times: np.ndarray
    some: pa.Table


def _gather_dropped(curation: Curation, shard: UnfinishedShard) -> AllDropped:
    """Write `dropped.parquet` of all stages."""
    counts, some = Counter(), [DROPPED_SCHEMA.empty_table()]
    times = np.zeros(len(curation.sources), np.uint8)
    stand_ins = load_stand_ins(curation)
    with parquet.ParquetWriter(shard.folder / "dropped.parquet", DROPPED_SCHEMA) as writer:
        for folder in _dropping(curation):
            shown = 0
            for table in curation.dropped(folder.name):
                if folder.name == "hash_deduplicate":
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
    return AllDropped(counts, times, pa.concat_tables(some))


def gather_report(curation: Curation, dropped: Counter, written: np.ndarray) -> dict[str, Any]:
    """The numbers: plain values, ready for JSON.

    Args:
        dropped: numbers of images by (stage, source, group of reasons).
        written: row ids of the images of the dataset, with the repeats of a multiset.
    """
    images = np.unique(written)
    configuration = _configuration(curation)
    selection = _report_of(curation, "select")
    of_pool = int(_of_role(curation, images, "uncurated").sum())
    report = {
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
        "dropped_by_source": _by_source(dropped),
        "sizes": sizes_before_and_after(curation, images),
        "deduplicate": _report_of(curation, "deduplicate"),
        "relative_deduplicate": _report_of(curation, "relative_deduplicate"),
        "leaks_of_curated": _leaks(curation),
        "select": selection,
        "concepts": _report_of(curation, "concepts"),
        "histograms": {counts.title: asdict(counts) for counts in _histograms(curation) if sum(counts.bins)},
        "searches": _searches(curation),
        "decoding": pixels.in_words(curation.arguments),
        "provenance": provenance(curation.arguments),
        "changed_options": changed_options(curation.arguments, configuration),
        "configuration": configuration,
    }
    return {"warnings": warnings_of(report), **report}


def _dropping(curation: Curation) -> list[StageFolder]:
    """The stages that drop images, in their order."""
    return [folder for folder in curation.folders.values() if folder.title is not None]


def _report_of(curation: Curation, stage: str) -> dict[str, Any]:
    """`report.json` of a stage of one shard; empty if there is none."""
    path = curation.folders[stage].shard(0) / "report.json" if stage in curation.folders else None
    return json.loads(path.read_text()) if path and path.exists() else {}


def _of_role(curation: Curation, row_ids: np.ndarray, role: str) -> np.ndarray:
    """(n,) bool: which of the rows belong to sources of this role."""
    return np.array(curation.sources.roles)[curation.source_numbers(row_ids)] == role


def _leaks(curation: Curation) -> dict[str, Any]:
    """Curated images that go into the dataset and resemble a benchmark image; empty if they are not compared."""
    if "search_leaks" not in curation.folders:
        return {}
    leaks, sources = leaks_of_curated(curation), curation.sources.sources
    of_source = Counter(sources[number].name for number in curation.source_numbers(leaks.row_ids))
    return {
        "compared": len(curation.included_vectors()[0]),
        "found": len(leaks.row_ids),
        "removed": "drop_leaks" in curation.folders,
        "by_source": dict(of_source.most_common()),
    }


def reason_group(reason: str) -> str:
    """A reason without the parts that differ between images, such as the message of a decoder."""
    return reason.split(":")[0]


def _searches(curation: Curation) -> list[dict[str, Any]]:
    """By index, what a search looks at, and what it finds of a sample."""
    return [{"among": of, **facts} for of, facts in searches(curation)]


def _funnel(curation: Curation, dropped: Counter) -> list[dict[str, Any]]:
    """The number of images of the pool before and after each stage."""
    sources = curation.sources
    pool = [source.name for source, role in zip(sources.sources, sources.roles, strict=True) if role == "uncurated"]
    left = sources.rows_of("uncurated")
    counts: dict[str, Counter] = {}
    for (name, source, reason), count in dropped.items():
        if source in pool:
            counts.setdefault(name, Counter())[reason] += count
    funnel = []
    for folder in _dropping(curation):
        found = counts.get(folder.name, Counter())
        gone = found.total()
        reasons = dict(found.most_common(MOST_REASONS))
        if len(found) > MOST_REASONS:
            reasons["other reasons"] = gone - sum(reasons.values())
        entry = {"stage": folder.name, "title": folder.title, "images_in": left, "images_out": left - gone}
        funnel.append({**entry, "dropped": reasons})
        left -= gone
    return funnel


def _sources(curation: Curation, dropped: Counter, written: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
    """For each source: its rows, the images that stages dropped, and its images in the dataset."""
    sources, retrieved = curation.sources, _retrieved_for(curation, images)
    described = []
    for number, source in enumerate(sources.sources):
        lost = Counter()
        for (dropping, name, _), count in dropped.items():
            if name == source.name:
                lost[dropping] += count
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


def _by_source(dropped: Counter) -> list[dict[str, Any]]:
    """The number of dropped images by source and reason, the most frequent first, at most `MOST_PAIRS`."""
    pairs = Counter()
    for (_, source, reason), count in dropped.items():
        pairs[source, reason] += count
    found = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_PAIRS]
    return [{"source": source, "reason": reason, "images": count} for (source, reason), count in found]


def _inside(row_ids: np.ndarray, rows: range) -> int:
    return int(((row_ids >= rows.start) & (row_ids < rows.stop)).sum())


def _retrieved_for(curation: Curation, images: np.ndarray) -> np.ndarray:
    """By number of the source, the images of the dataset retrieved for it; one for two sources counts for both."""
    path = curation.folders["select"].shard(0) / "selected.parquet"
    table = parquet.read_table(path, columns=["row_id", "retrieved_for"])
    table = table.filter(np.isin(table["row_id"].to_numpy(), images))
    numbers = pc.list_flatten(table["retrieved_for"]).to_numpy()
    return np.bincount(numbers, minlength=len(curation.sources.sources))


def _histograms(curation: Curation) -> list[Histogram]:
    """The histograms that stages wrote, and those of the scores of the filters."""
    found = [_scores(curation, planned) for planned in planned_filters(curation.arguments)]
    return found + [counts for folder in curation.folders.values() if (counts := load_histogram(folder)) is not None]


def _scores(curation: Curation, planned: PlannedFilter) -> Histogram:
    """The scores of a filter, with its threshold; the upper one if there are two."""
    files = curation.folders["ingest"].files("scores.parquet")
    scores = np.concatenate(
        [parquet.read_table(path, columns=[planned.name])[planned.name].to_numpy() for path in files]
    )
    side, threshold = ("below", planned.min) if planned.max is None else ("above", planned.max)
    known = scores[np.isfinite(scores)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    return histogram(
        known, threshold, f"Scores of the filter {planned.name}", label="images dropped", side=side, low=low,
        high=high if high > low else low + 1, quantity="score",
    )  # fmt: skip


def _configuration(curation: Curation) -> dict[str, Any]:
    """The arguments that change the result; paths are cut to their last part."""
    values = vars(curation.arguments)
    shown = {name: value for name, value in values.items() if name not in ENGINE_FIELDS}
    shown["embedder"] = curation.arguments.copy_embedder
    for role in ("uncurated", "curated", "benchmarks"):
        wanted = {"benchmarks": "benchmark"}.get(role, role)
        shown[role] = [source.name for given, source in curation.arguments.sources if given == wanted]
    for name in ("embedder", "retrieval_embedder", "nsfw_model", "face_model", "filters", "stages"):
        shown[name] = _last_part(shown[name])
    return without_secrets(json.loads(json.dumps(shown, default=str)))


def _last_part(value: Any) -> Any:
    """The last part of a path, also among options; a name on the Hub is kept whole."""
    if isinstance(value, dict):
        return {name: _last_part(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_last_part(item) for item in value]
    if isinstance(value, str) and "/" in value and value.count("/") != 1:
        return value.rstrip("/").rsplit("/", 1)[-1]
    return value
