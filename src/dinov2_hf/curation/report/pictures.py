"""The pictures of the report: histograms of similarities, and examples of what was kept and dropped."""

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from pyarrow import parquet

from ..algorithms.similarity_counts import HISTOGRAM_EDGES
from ..completeness import written_row_ids
from ..run_context import Curation
from ..storage.published_images import load_face_blur, thumbnail


SIDE = 112
KEPT_EXAMPLES = 28
GROUPS_PER_REASON = 8
MOST_REASONS = 20  # of a filter that says something else of each image
COPIES_PER_GROUP = 4
RETRIEVED_PER_QUERY = 5


@dataclass
class ExamplePicture:
    """A thumbnail and what to say under it."""

    data: str  # base64 of a JPEG
    caption: str
    title: str  # the image's id


@dataclass
class ExampleGroup:
    """Pictures that belong together: one that stays (or that asked), and those dropped for it (or that it brought)."""

    stays: list[ExamplePicture] = field(default_factory=list)
    others: list[ExamplePicture] = field(default_factory=list)


def draw_histogram(title: str, histogram: dict[str, Any]) -> str:
    """A histogram as SVG text, logarithmic, with the threshold drawn where there is one.

    Args:
        histogram: an entry of "histograms" of `report.gather_report`; what it cannot show is said below the picture.
    """
    counts, threshold = np.array(histogram["bins"]), histogram["threshold"]
    figure = Figure(figsize=(6.4, 2.7), layout="constrained")
    axes = figure.add_subplot()
    centers = (HISTOGRAM_EDGES[1:] + HISTOGRAM_EDGES[:-1]) / 2
    beyond = np.zeros(len(counts), bool)
    if threshold is not None:
        beyond = centers > threshold if histogram["side"] == "above" else centers < threshold
    axes.stairs(np.where(beyond, 0, counts), HISTOGRAM_EDGES, fill=True, color="#4878a8")
    axes.stairs(np.where(beyond, counts, 0), HISTOGRAM_EDGES, fill=True, color="#c8553d")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    present = np.flatnonzero(counts)
    low = min(HISTOGRAM_EDGES[present[0]], 0.0 if threshold is None else threshold) - 0.05
    axes.set_xlim(max(-1.0, low), 1.02)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1)
        axes.annotate(
            f" {histogram['label']} {threshold}: {histogram[histogram['side']]:,}", (threshold, 0.97),
            xycoords=("data", "axes fraction"), va="top", fontsize=9,
        )  # fmt: skip
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("cosine similarity" + not_shown(histogram), fontsize=9)
    axes.set_ylabel(histogram["unit"], fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text as text, which can be searched and copied
        figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def not_shown(histogram: dict[str, Any]) -> str:
    """What a histogram leaves out, as the end of a line; empty where it shows all."""
    if not histogram["unknown"]:
        return ""
    why = "for which the search found nothing"
    if histogram["floor"] is not None:
        why = f"below {histogram['floor']}, where the search stops"
    return f"  (not shown: {histogram['unknown']:,} {histogram['unit']} {why})"


class Pictures:
    """Makes thumbnails of images that may be shown: with faces blurred, if they are in the dataset."""

    def __init__(self, curation: Curation):
        self.sources, self.blur = curation.sources, load_face_blur(curation.arguments)

    def __call__(self, row_id: int, caption: str, id: str) -> ExamplePicture | None:
        data = thumbnail(self.sources.image(int(row_id)), SIDE, self.blur)
        return data and ExamplePicture(base64.b64encode(data).decode(), caption, id)


def kept_examples(curation: Curation, picture: Pictures) -> dict[str, list[ExampleGroup]]:
    """Images of the dataset: some at random, and what some curated images brought."""
    generator = np.random.default_rng(0)
    written = np.unique(written_row_ids(curation))
    row_ids = np.sort(generator.choice(written, min(KEPT_EXAMPLES, len(written)), replace=False))
    ids = _ids(curation, row_ids)
    pictures = [picture(row, "", id) for row, id in zip(row_ids, ids, strict=True)]
    examples = {"In the dataset": [ExampleGroup(others=[one for one in pictures if one])]}
    pairs = curation.folders["select"].shard(0) / "pairs.parquet"
    if pairs.exists():
        table = parquet.read_table(pairs)
        queries = np.unique(table["query"].to_numpy())
        groups = []
        for query in generator.choice(queries, min(GROUPS_PER_REASON, len(queries)), replace=False):
            found = table.filter(pc.equal(table["query"], int(query))).sort_by([("similarity", "descending")])
            found = found.slice(0, RETRIEVED_PER_QUERY)
            group = ExampleGroup([picture(query, "curated", _ids(curation, [query])[0])])
            for row, similarity in zip(found["row_id"].to_pylist(), found["similarity"].to_pylist(), strict=True):
                group.others.append(picture(row, f"{similarity:.2f}", _ids(curation, [row])[0]))
            groups.append(_readable(group))
        if groups:
            examples["Retrieved for a curated image"] = groups
    return examples


def example_groups(
    curation: Curation, picture: Pictures, dropped: pa.Table, counts: Counter
) -> dict[str, list[ExampleGroup]]:
    """For each group of reasons some of the images that it dropped; copies beside the image that stays.

    What `nsfw_model` or a filter of the user's dropped is not shown, nor what they have not seen since it was dropped
    before them.

    Half of the copies are those least alike, which show whether the threshold is right, half are from the largest
    groups.

    Args:
        dropped: rows to choose from.
        counts: of all, by (stage, source, group of reasons).
    """
    arguments = curation.arguments
    if arguments.filters or arguments.nsfw_model:
        dropped = dropped.filter(pc.not_equal(dropped["stage"], "ingest"))
        counts = Counter({key: count for key, count in counts.items() if key[0] != "ingest"})
    totals = Counter()
    for (_, _, reason), count in counts.items():
        totals[reason] += count
    examples = {}
    reasons = [reason for reason, _ in totals.most_common() if not reason.startswith("cannot be")]
    # The words that `report.reason_group` counts by.
    reason_of_row = pc.list_element(pc.split_pattern(dropped["reason"], ":", max_splits=1), 0)
    for reason in sorted(reasons, key=_order)[:MOST_REASONS]:
        rows = dropped.filter(pc.equal(reason_of_row, reason))
        if rows["duplicate_of"].null_count == len(rows):
            generator = np.random.default_rng(0)
            shown = generator.choice(len(rows), min(2 * GROUPS_PER_REASON, len(rows)), replace=False)
            some = rows.take(np.sort(shown)).to_pylist()
            groups = [ExampleGroup(others=[picture(row["row_id"], "", row["id"]) for row in some])]
        else:
            originals = _shown_originals(rows)
            kept = _rows_of(curation, originals, rows["row_id"])
            groups = [_copies(picture, rows, original, kept.get(original)) for original in originals]
        groups = [_readable(group) for group in groups]
        groups = [group for group in groups if group.others]
        if groups:
            examples[f"{reason}: {totals[reason]:,}"] = groups
    return examples


def _shown_originals(rows: pa.Table) -> list[str]:
    originals = rows.group_by("duplicate_of").aggregate([("row_id", "count"), ("similarity", "min")])
    largest = originals.sort_by([("row_id_count", "descending"), ("duplicate_of", "ascending")])
    doubtful = originals.sort_by([("similarity_min", "ascending"), ("duplicate_of", "ascending")])
    half = GROUPS_PER_REASON // 2
    names = [*doubtful["duplicate_of"].to_pylist()[:half], *largest["duplicate_of"].to_pylist()]
    return list(dict.fromkeys(names))[:GROUPS_PER_REASON]


def _copies(picture: Pictures, rows: pa.Table, original: str, kept: int | None) -> ExampleGroup:
    copies = rows.filter(pc.equal(rows["duplicate_of"], original)).sort_by([("similarity", "ascending")])
    group = ExampleGroup([] if kept is None else [picture(kept, "stays", original)])
    for row in copies.slice(0, COPIES_PER_GROUP).to_pylist():
        caption = "" if row["similarity"] is None else f"{row['similarity']:.2f}"
        group.others.append(picture(row["row_id"], caption, row["id"]))
    return group


def _readable(group: ExampleGroup) -> ExampleGroup:
    return ExampleGroup([picture for picture in group.stays if picture], [p for p in group.others if p])


def _ids(curation: Curation, row_ids) -> list[str]:
    return curation.facts(row_ids, ["id"])["id"].to_pylist()


def _rows_of(curation: Curation, ids: list[str], dropped: pa.ChunkedArray) -> dict[str, int]:
    """The row ids of images by their ids; of those that share one, that which was not dropped."""
    found: dict[str, int] = {}
    for path in curation.folders["ingest"].files("images.parquet"):
        table = parquet.read_table(path, columns=["row_id", "id"], filters=[("id", "in", ids)])
        for row in table.filter(pc.invert(pc.is_in(table["row_id"], dropped))).to_pylist():
            found.setdefault(row["id"], row["row_id"])
    return found


def _order(reason: str) -> int:
    """Copies first: they are what a person must judge."""
    return 0 if "benchmark" in reason else 1 if "copy" in reason else 2 if "same" in reason else 3
