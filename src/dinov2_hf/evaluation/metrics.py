"""The result of a protocol: metrics, and further findings for the record."""

import math
from collections.abc import Iterable, Mapping
from typing import Any


class Metrics(dict[str, float]):
    """Metrics by name.

    Attributes:
        findings: options that the protocol has chosen itself, and numbers of images and classes, by name.
        notes: sentences for the user.
    """

    def __init__(self, values: Mapping[str, float] | None = None, **findings: Any) -> None:
        super().__init__(values or {})
        self.findings = findings
        self.notes: list[str] = []

    def note_edge(
        self, name: str, found: Mapping[Any, float], *, lowest: float = -math.inf, highest: float = math.inf
    ) -> None:
        """Add a note if the best value of a grid is its smallest or largest: a better one may lie beyond.

        Args:
            name: name of the quantity in the grid.
            found: the accuracy of each value.
            lowest, highest: limits of the possible values.
        """
        best = max(found.values())
        bests = [value for value in found if found[value] == best]
        low, high = min(found), max(found)
        if len(found) == 1 or set(bests) - {low, high} or len(bests) > 1:
            return
        if (bests[0] == low and low > lowest) or (bests[0] == high and high < highest):
            end = "smallest" if bests[0] == low else "largest"
            self.notes.append(
                f"the best {name}, {bests[0]:g}, is the {end} that was tried; a better one may lie beyond"
            )


def listed(values: Iterable[Any]) -> str:
    """Values in the form in which they are typed on a command line."""
    return " ".join(map(str, values)) or "empty"
