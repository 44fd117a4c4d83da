"""Examples of kept and dropped images, as pictures for the page of the report."""

import base64
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from ...data.decoding.undecodable import UndecodableImage
from ..run_context import Curation
from ..stages.deduplicate import leaks_of_curated
from ..storage.image_reading import UnreadableFile
from ..storage.published_images import load_face_blur, thumbnail
from .accounting import written_row_ids


SIDE = 112
KEPT_EXAMPLES = 28
GROUPS_PER_REASON = 8
MOST_REASONS = 20  # for a filter with a different reason for each image
COPIES_PER_GROUP = 4
RETRIEVED_PER_QUERY = 5
SHOWN_CONCEPTS = 12


@dataclass
class ExamplePicture:
    """A thumbnail and its caption."""

    data: str  # base64 of a JPEG
    caption: str
    title: str  # the image's id


@dataclass
class ExampleGroup:
    """Pictures that belong together: one that stays (or a query), and those dropped for it (or retrieved for it)."""

    stays: list[ExamplePicture] = field(default_factory=list)
    others: list[ExamplePicture] = field(default_factory=list)


class Pictures:
    """Makes thumbnails of images that may be shown: with faces blurred, if they are in the dataset."""

    def __init__(self, curation: Curation):
        self.sources, self.blur = curation.sources, load_face_blur(curation.arguments)

    def __call__(self, row_id: int, caption: str = "") -> list[ExamplePicture]:
        """One picture, or none if the image cannot be read."""
        try:
            data = thumbnail(self.sources.image(int(row_id)), SIDE, self.blur)
        except (UndecodableImage, UnreadableFile):
            return []
        id = self.sources.image_id(int(row_id))
        return [ExamplePicture(base64.b64encode(data).decode(), caption, id)]

    def all(self, row_ids: np.ndarray) -> list[ExamplePicture]:
        return [picture for row_id in row_ids for picture in self(row_id)]


def kept_examples(curation: Curation, picture: Pictures) -> dict[str, list[ExampleGroup]]:
    """Images of the dataset: some at random, and some that were retrieved for curated images."""
    generator = np.random.default_rng(0)
    written = np.unique(written_row_ids(curation))
    row_ids = np.sort(generator.choice(written, min(KEPT_EXAMPLES, len(written)), replace=False))
    examples = {"In the dataset": [ExampleGroup(others=picture.all(row_ids))]}
    pairs = curation.folders["select"].shard(0) / "pairs.parquet"
    if pairs.exists():
        table = parquet.read_table(pairs)
        queries = np.unique(table["query"].to_numpy())
        groups = []
        for query in generator.choice(queries, min(GROUPS_PER_REASON, len(queries)), replace=False):
            found = table.filter(pc.equal(table["query"], int(query))).sort_by([("similarity", "descending")])
            found = found.slice(0, RETRIEVED_PER_QUERY)
            group = ExampleGroup(picture(query, "curated"))
            for row in found.to_pylist():
                group.others += picture(row["row_id"], f"{row['similarity']:.2f}")
            groups.append(group)
        if groups:
            examples["Retrieved for a curated image"] = groups
    return examples


def threshold_examples(report: dict[str, Any], picture: Pictures) -> dict[str, dict[str, list[ExampleGroup]]]:
    """Pairs of images near each threshold, by stage and by side of the threshold.

    Args:
        report: from `numbers.gather_report`.
    """
    found = {}
    for stage in ("deduplicate", "relative_deduplicate"):
        sides = report[stage].get("pairs_beside_threshold", {})
        groups = {side: [_pair(picture, *pair) for pair in pairs] for side, pairs in sides.items()}
        if any(groups.values()):
            found[stage] = groups
    return found


def leak_examples(curation: Curation, picture: Pictures) -> list[ExampleGroup]:
    """Curated images of the dataset and the benchmark images that they resemble, the most similar first."""
    if "search_leaks" not in curation.folders:
        return []
    leaks = leaks_of_curated(curation)
    first = np.argsort(-leaks.similarities, kind="stable")[:GROUPS_PER_REASON]
    pairs = zip(leaks.others[first], leaks.row_ids[first], leaks.similarities[first], strict=True)
    return [ExampleGroup(picture(other, "benchmark"), picture(row, f"{alike:.2f}")) for other, row, alike in pairs]


def concept_examples(report: dict[str, Any], picture: Pictures) -> list[dict[str, Any]]:
    """The largest clusters of the pool: their shares before and after, in percent, and typical images."""
    found = report["concepts"]
    if not found:
        return []
    totals = {group: max(sum(found[group]["images"]), 1) for group in ("pool", "dataset")}
    return [
        {
            **{group: 100 * found[group]["images"][number] / total for group, total in totals.items()},
            "pictures": picture.all(row_ids),
        }
        for number, row_ids in enumerate(found["typical"][:SHOWN_CONCEPTS])
    ]


def _pair(picture: Pictures, row: int, other: int, cosine: float) -> ExampleGroup:
    return ExampleGroup(others=[*picture(row, f"{cosine:.3f}"), *picture(other)])


def example_groups(
    curation: Curation, picture: Pictures, dropped: pa.Table, counts: Counter
) -> dict[str, list[ExampleGroup]]:
    """For each group of reasons, some of the images that were dropped; copies with the image that stays.

    Images that `nsfw_model` or a filter of the user dropped are not shown. Images that were dropped before these
    filters ran are not shown either.

    Half of the copies are the least similar ones, which show whether the threshold is right. The other half are from
    the largest groups.

    Args:
        dropped: rows to choose from.
        counts: numbers of all images, by (stage, source, group of reasons).
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
            groups = [ExampleGroup(others=picture.all(rows["row_id"].to_numpy()[np.sort(shown)]))]
        else:
            originals = _shown_originals(rows)
            kept = _rows_of(curation, originals, rows["row_id"])
            groups = [_copies(picture, rows, original, kept.get(original)) for original in originals]
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
    group = ExampleGroup([] if kept is None else picture(kept, "stays"))
    for row in copies.slice(0, COPIES_PER_GROUP).to_pylist():
        group.others += picture(row["row_id"], "" if row["similarity"] is None else f"{row['similarity']:.2f}")
    return group


def _rows_of(curation: Curation, ids: list[str], dropped: pa.ChunkedArray) -> dict[str, int]:
    """The row ids of images by their ids; if several share an id, the image that was not dropped."""
    found: dict[str, int] = {}
    for shard in range(len(curation.pieces)):
        table = curation.images_of(shard, ["row_id", "id"], filters=[("id", "in", ids)])
        for row in table.filter(pc.invert(pc.is_in(table["row_id"], dropped))).to_pylist():
            found.setdefault(row["id"], row["row_id"])
    return found


def _order(reason: str) -> int:
    """The order of reasons: copies first, because a person must judge them."""
    return 0 if "benchmark" in reason else 1 if "copy" in reason else 2 if "same" in reason else 3
