"""Curations that grow: a run in the folder of an earlier one, with further sources.

Reading, filtering and describing images takes most of the time and is done by source, so the results of earlier
sources are kept. Steps that use all images together are repeated: copies, selection, dataset and report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .executors import PlannedStage
from .storage.manifests import change_of


# Fields of a stage's configuration that follow from the sources: those that then hold more, and others.
GROWING = {"sources", "modes", "roles", "included"}
FOLLOWING = {"num_shards", "after"}


def sources_came(
    stages: Sequence[PlannedStage], records: Mapping[str, bytes | None], where: str, option: str = "output_dir"
) -> bool:
    """Whether there are more sources than in the earlier run, and all of its sources are unchanged.

    Args:
        stages: stages of a plan, in their order.
        records: the `stage.json` of the stages of the earlier run, by name.
        where, option: their place, and the option that gives it.

    Raises:
        ValueError: sources were added, but something else differs too.
    """
    differences = [stage.folder.differences(records.get(stage.name)) or {} for stage in stages]
    then, now = differences[0].get("sources", (None, None))
    if not _holds_more(then, now) or len(then) == len(now):
        return False
    others = [
        change_of(name, *values)
        for found in differences
        for name, values in found.items()
        if name not in FOLLOWING and not (name in GROWING and _holds_more(*values))
    ]
    if others:
        came = ", ".join(source["name"] for source in now if source not in then)
        raise ValueError(
            f"sources have come to those of {where} ({came}), which keeps what was made of"
            f" the others; but the earlier run had {'; '.join(dict.fromkeys(others))}. Take the earlier values, choose"
            f" another {option}, or make again what these change with --overwrite."
        )
    return True


def _holds_more(then: Any, now: Any) -> bool:
    """Whether a list or mapping contains everything that it contained before."""
    if isinstance(then, dict) and isinstance(now, dict):
        return all(name in now and now[name] == value for name, value in then.items())
    return isinstance(then, list) and isinstance(now, list) and all(item in now for item in then)
