"""What a part of the suite is, and what it is given."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


Rows = dict[str, dict[str, Any]]


class NotMeasured(Exception):
    """A part cannot be measured here; the message says what is missing."""


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        seconds: it would like; see `PARTS`.
        needs: distributions without which it is left out.
        more_with: distributions with which it measures more.
        measure: gives rows of numbers to `Work.record`, each as soon as it is known.
        draw: draws the rows on a matplotlib figure.
    """

    name: str
    seconds: float
    needs: tuple[str, ...]
    measure: Callable[["Work"], None]
    draw: Callable[[Any, Rows], None] | None = None
    more_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """
    Attributes:
        toy: networks and data of the smallest size, to see that everything runs.
        device: "cuda" or "cpu".
        folder: for files that nobody keeps.
        deadline: after which nothing new is begun, in seconds as `time.time()` counts.
        record: takes the name of a row and its numbers, which are added to those that it has.
        images: a parquet file or folder of photographs.
        cifar10: a folder with train.parquet and test.parquet.
        original: a clone of github.com/facebookresearch/dinov2.
        peak_teraflops: of the GPU in bfloat16, that shares are told of.
    """

    toy: bool
    device: str
    folder: Path
    deadline: float
    record: Callable[[str, dict[str, Any]], None] = field(repr=False)
    images: str | None = None
    cifar10: str | None = None
    original: str | None = None
    peak_teraflops: float = 790.0

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.time()
