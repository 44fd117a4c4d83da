"""What a protocol finds out besides its metrics, for whoever keeps a record of it.

A protocol fills the mapping `findings` that it is given: options that it has settled itself, numbers of images and
classes, and under `notes` sentences for people.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any


logger = logging.getLogger(__name__)


def note(findings: dict[str, Any] | None, sentence: str) -> None:
    """Add a sentence to the notes; where nobody keeps them, it is logged (as information)."""
    if findings is None:
        logger.info("%s", sentence)
    else:
        findings.setdefault("notes", []).append(sentence)


def note_edge(
    findings: dict[str, Any] | None,
    name: str,
    found: Mapping[float, float],
    *,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> None:
    """Say so where the best value of a grid is its smallest or largest: a better one may lie beyond.

    Args:
        name: of what the grid varies.
        found: of each value how good it is.
        lowest, highest: values beyond which there is nothing.
    """
    best = max(found.values())
    bests = [value for value in found if found[value] == best]
    low, high = min(found), max(found)
    if len(found) == 1 or set(bests) - {low, high} or len(bests) > 1:
        return
    if (bests[0] == low and low > lowest) or (bests[0] == high and high < highest):
        end = "smallest" if bests[0] == low else "largest"
        note(findings, f"the best {name}, {bests[0]:g}, is the {end} that was tried; a better one may lie beyond")


def keep(findings: dict[str, Any] | None, **values: Any) -> None:
    """Keep values under their names, where somebody wants them."""
    if findings is not None:
        findings.update(values)


def listed(values: Iterable[Any]) -> str:
    """Values as they are typed on a command line."""
    return " ".join(map(str, values)) or "empty"
