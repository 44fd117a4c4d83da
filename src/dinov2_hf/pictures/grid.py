"""Rows of pictures in a PNG."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .figures import new_figure, save_figure


# Inches.
CELL_WIDTH = 1.8
GAP = 0.06
LINE = 0.22
LEGEND_WIDTH = 1.5
CAPTION = {"fontsize": 8, "va": "top", "ha": "center", "linespacing": 1.1}
CHARACTERS_PER_CELL = 26


@dataclass
class Cell:
    """One picture of a grid.

    Attributes:
        picture: an image, or an array (height, width, 3) in [0, 1] whose pixels are drawn as squares.
        caption: lines below it; of each, as much as fits.
    """

    picture: Image.Image | np.ndarray
    caption: str = ""


@dataclass
class PictureGrid:
    """Rows of cells, drawn from the top left; the cells of a row are as high as its first picture asks for.

    Attributes:
        rows: of cells; their lengths may differ.
        row_gaps: space above a row beyond the usual gap, in gaps, by the number of the row.
        headings: a line above each column.
        labels: a line at the left of each row, from below to above.
        title: a line above everything.
        cell_width: in inches.
        legend: patches of matplotlib with their labels, at the right of everything.
        scales: what colours mean, at the right of everything: `ScalarMappable`s of matplotlib with their labels.
    """

    rows: list[list[Cell]]
    row_gaps: dict[int, int] = field(default_factory=dict)
    headings: Sequence[str] = ()
    labels: Sequence[str] = ()
    title: str | None = None
    cell_width: float = CELL_WIDTH
    legend: Sequence[Any] = ()
    scales: Sequence[tuple[Any, str]] = ()

    def save(self, path: str | os.PathLike) -> Path:
        """Draw to a PNG; missing folders are made, and the file appears complete or not at all."""
        num_lines = max(len(cell.caption.splitlines()) for row in self.rows for cell in row)
        head = (0.36 if self.title else 0.0) + (LINE if self.headings else 0.0)
        used, places = head, []  # from the top
        for number, row in enumerate(self.rows):
            height, width = np.asarray(row[0].picture).shape[:2]
            used += self.row_gaps.get(number, 0) * GAP
            places.append((used, self.cell_width * height / width))
            used += places[-1][1] + GAP + num_lines * LINE * 0.7
        step = self.cell_width + GAP
        right = max(len(row) for row in self.rows) * step
        self.figure = new_figure(right + (LEGEND_WIDTH if self.legend or self.scales else 0), used)
        if self.title:
            self.figure.text(0, 1, self.title, fontsize=13, va="top", ha="left")
        for column, heading in enumerate(self.headings):
            self._write(heading, column * step + self.cell_width / 2, head - GAP, fontsize=9, va="bottom", ha="center")
        for label, (top, height) in zip(self.labels, places, strict=False):
            style = {"fontsize": 9, "rotation": "vertical", "va": "center", "ha": "right"}
            self._write(label, -GAP, top + height / 2, **style)
        for row, (top, height) in zip(self.rows, places, strict=True):
            for column, cell in enumerate(row):
                axes = self._axes(column * step, top, self.cell_width, height)
                if isinstance(cell.picture, Image.Image):
                    axes.imshow(np.asarray(cell.picture.convert("RGB")), interpolation="antialiased")
                else:
                    axes.imshow(cell.picture, interpolation="nearest")
                axes.set_axis_off()
                if cell.caption:
                    middle = column * step + self.cell_width / 2
                    self._write(shortened(cell.caption), middle, top + height + GAP / 2, **CAPTION)
        if self.legend:
            self.figure.legend(
                handles=self.legend, loc="upper left", bbox_to_anchor=self._place(right + 0.1, head), frameon=False,
                fontsize=10, borderaxespad=0, ncols=1 + (len(self.legend) - 1) // 40,
            )  # fmt: skip
        length = min(2.0, (used - head) / 2 - 0.3)
        for number, (mappable, label) in enumerate(self.scales):
            axes = self._axes(right + 0.1, head + number * (length + 0.3), 0.15, length)
            self.figure.colorbar(mappable, cax=axes, label=label)
        # The tight box also makes room for a title longer than the row of pictures.
        return save_figure(self.figure, path, pad_inches=0.12)

    def _place(self, left: float, top: float) -> tuple[float, float]:
        """Inches from the top left corner as matplotlib counts, in shares from the bottom left."""
        width, height = self.figure.get_size_inches()
        return left / width, 1 - top / height

    def _write(self, words: str, left: float, top: float, **style: Any) -> None:
        self.figure.text(*self._place(left, top), words, **style)

    def _axes(self, left: float, top: float, width: float, height: float) -> Any:
        whole_width, whole_height = self.figure.get_size_inches()
        return self.figure.add_axes((*self._place(left, top + height), width / whole_width, height / whole_height))


def shortened(caption: str) -> str:
    """Every line cut to the width of a cell."""
    return "\n".join(
        line if len(line) <= CHARACTERS_PER_CELL else line[: CHARACTERS_PER_CELL - 1] + "…"
        for line in caption.splitlines()
    )
