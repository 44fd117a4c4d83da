"""Sizes, shapes and formats of the readable images of the pool, and of the images of the dataset."""

from typing import Any

import numpy as np

from ..run_context import Curation


# Upper ends of the bins, which belong to them. Larger values have their own bin.
SHORTER_SIDE = (63, 127, 255, 511, 1023, 2047)
ASPECT_RATIO = (1.1, 1.4, 1.6, 2.0, 3.0)
KILOBYTES = (10, 30, 100, 300, 1000, 3000)


def sizes_before_and_after(curation: Curation, images: np.ndarray) -> dict[str, dict[str, Any]]:
    """For each quantity, the names of bins with the counts of "pool" and "dataset".

    Args:
        images: row ids of the dataset, ascending, each once.
    """
    formats: dict[str, np.ndarray] = {}
    counts = {name: np.zeros((2, len(ends) + 1), np.int64) for name, ends, _ in _MEASURES}
    in_pool = np.array(curation.sources.roles) == "uncurated"
    for shard in range(len(curation.pieces)):
        table = curation.images_of(shard, ["row_id", "source", "width", "height", "num_bytes", "format"])
        facts = {name: table[name].to_numpy() for name in table.column_names if name != "format"}
        found = np.array(table["format"].to_pylist(), dtype=object)
        of_groups = in_pool[facts["source"]], np.isin(facts["row_id"], images)
        for group, inside in enumerate(of_groups):
            for name, ends, measure in _MEASURES:
                bins = np.searchsorted(ends, measure(facts)[inside])
                counts[name][group] += np.bincount(bins, minlength=len(ends) + 1)
            for kind, count in zip(*np.unique(found[inside].astype(str), return_counts=True), strict=True):
                formats.setdefault(str(kind), np.zeros(2, np.int64))[group] += count
    report = {
        name: _described([_name_of(ends, place) for place in range(len(ends) + 1)], counts[name].T)
        for name, ends, _ in _MEASURES
    }
    names = sorted(formats, key=lambda kind: (-formats[kind].sum(), kind))
    report["format of the file"] = _described(names, [formats[kind] for kind in names])
    return report


_MEASURES = (
    ("shorter side, pixels", SHORTER_SIDE, lambda facts: np.minimum(facts["width"], facts["height"])),
    (
        "longer over shorter side",
        ASPECT_RATIO,
        lambda facts: np.maximum(facts["width"], facts["height"]) / np.minimum(facts["width"], facts["height"]),
    ),
    ("kilobytes of the file", KILOBYTES, lambda facts: facts["num_bytes"] / 1000),
)


def _name_of(ends: tuple, place: int) -> str:
    return f"above {ends[-1]:g}" if place == len(ends) else f"up to {ends[place]:g}"


def _described(names: list[str], counts: Any) -> dict[str, dict[str, int]]:
    """The bins that are not empty both before and after."""
    pairs = zip(names, counts, strict=True)
    return {name: {"pool": int(before), "dataset": int(after)} for name, (before, after) in pairs if before or after}
