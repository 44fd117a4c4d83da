"""Warnings of a report: numbers that show that something may be wrong."""

from collections.abc import Iterator
from typing import Any


FALSE_NEIGHBORS = 0.1  # per image, at the threshold
LOST_SHARE = 0.01  # of the pool, to files that cannot be read or embedded
CHAINED_SHARE = 0.1  # of the copies, that do not resemble what stays for them
LARGE_SHARE = 0.5  # of the pool, to one reason of deduplication


def warnings_of(report: dict[str, Any]) -> list[str]:
    """Sentences for the user, the most serious first.

    Args:
        report: result of `numbers.gather_report`.
    """
    found = (
        _leaks, _false_copies, _false_benchmarks, _low_recall, _lost, _chains, _large_drops, _not_read,
        _nothing_retrieved,
    )  # fmt: skip
    return [sentence for one in found for sentence in one(report)]


def _leaks(report: dict[str, Any]) -> Iterator[str]:
    leaks = report["leaks_of_curated"]
    if leaks.get("found") and not leaks["removed"]:
        sources = ", ".join(f"{name} {count:,}" for name, count in leaks["by_source"].items())
        yield (
            f"Curated images in the dataset that resemble one of a benchmark: {leaks['found']:,} ({sources})."
            " exclude_benchmark_copies_of_curated leaves them out."
        )


def _false_copies(report: dict[str, Any]) -> Iterator[str]:
    each = _at_threshold(report["deduplicate"]).get("false_neighbors_of_an_image", 0)
    if each > FALSE_NEIGHBORS:
        yield (
            f"By chance alone each image of the pool has about {each:.2g} neighbours above the threshold of copies,"
            f" {report['deduplicate']['threshold']}: many dropped images are not copies. Set a higher"
            " deduplication_threshold or another embedder."
        )


def _false_benchmarks(report: dict[str, Any]) -> Iterator[str]:
    each = _at_threshold(report["relative_deduplicate"]).get("false_neighbors_of_an_image", 0)
    if each > FALSE_NEIGHBORS:
        yield (
            f"By chance alone an image of the pool is above {report['relative_deduplicate']['threshold']} to about"
            f" {each:.2g} benchmark images: many dropped images do not resemble one. Set a higher"
            " benchmark_threshold or another embedder."
        )


def _low_recall(report: dict[str, Any]) -> Iterator[str]:
    for search in report["searches"]:
        recall = search.get("recall")
        if recall and recall["measured"] < recall["asked"]:
            advice = (
                "no number of candidates of this index is enough"
                if search["lists_visited"] == search["lists"]
                else ("a higher index_probes, or none, finds more")
            )
            yield (
                f"The search among {search['among']} finds {recall['measured']:.2%} of the true neighbours, but"
                f" {recall['asked']:.2%} were asked for (search_recall): {advice}."
            )


def _lost(report: dict[str, Any]) -> Iterator[str]:
    total = report["funnel"][0]["images_in"]
    reasons = [(reason, count) for row in report["funnel"] for reason, count in row["dropped"].items()]
    for beginning, what in (("cannot be", "could not be read or decoded"), ("its vector is", "have no usable vector")):
        lost = sum(count for reason, count in reasons if reason.startswith(beginning))
        if lost > LOST_SHARE * total:
            yield f"{lost:,} of {total:,} images of the pool ({100 * lost / total:.1f} %) {what}."


def _chains(report: dict[str, Any]) -> Iterator[str]:
    found = report["deduplicate"]
    chained, dropped = found.get("chained_rows", 0), found.get("dropped", 0)
    if not found.get("chains_split") and chained > CHAINED_SHARE * max(dropped, 1):
        yield (
            f"{chained:,} of the {dropped:,} images dropped as copies do not resemble the image that stays, and only a"
            " chain connects them to it: split_chains keeps one more for them."
        )


def _large_drops(report: dict[str, Any]) -> Iterator[str]:
    total = report["funnel"][0]["images_in"]
    for row in report["funnel"]:
        gone = row["images_in"] - row["images_out"]
        if row["stage"] in ("deduplicate", "relative_deduplicate") and gone > LARGE_SHARE * total:
            share = f"{100 * gone / total:.0f} %"
            yield f"{row['stage']} dropped {share} of the pool: look at the pairs near its threshold."


def _not_read(report: dict[str, Any]) -> Iterator[str]:
    for source in report["sources"]:
        if source.get("splits_not_read"):
            yield f"Some splits of {source['name']} were not read: {', '.join(source['splits_not_read'])}."
        if source.get("unread"):
            yield f"{sum(source['unread'].values()):,} files of {source['name']} are not images and were not read."


def _nothing_retrieved(report: dict[str, Any]) -> Iterator[str]:
    for source in report["sources"]:
        is_asked = source["role"] == "curated" and report["select"].get("how") == "retrieval"
        if is_asked and source["images"] and not source["retrieved_for_it"]:
            yield f"No image of the pool was retrieved for {source['name']}."


def _at_threshold(found: dict[str, Any]) -> dict[str, Any]:
    """The row for the used threshold in its table of thresholds."""
    rows = [row for row in found.get("thresholds", ()) if abs(row["threshold"] - found["threshold"]) < 1e-9]
    return rows[0] if rows else {}
