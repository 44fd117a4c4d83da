"""Plots and pictures as PNG files that appear complete or not at all."""

import io
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import new_file


logger = logging.getLogger(__name__)


def new_figure(width: float, height: float):
    """A matplotlib figure of this many inches, which belongs to no window and to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | os.PathLike, **options) -> Path:
    """Write `figure` to a PNG; missing folders are made, `options` are those of matplotlib's `savefig`.

    All words in it are drawn as they are: the name of a class with a dollar sign is not a formula.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with new_file(path, overwrite=True) as partial:
        figure.savefig(partial, **{"dpi": 150, "bbox_inches": "tight", "format": "png"} | options)
    return Path(path)


def svg_text(figure) -> str:
    """A figure as an `<svg>` element, whose text can be searched and copied."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dinov2_hf"}):  # the same bytes for the same figure
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def draw_beside_numbers(
    folder: Path | None, name: str, draw: Callable[..., Any], *pictured: Any, **options: Any
) -> None:
    """Draw what stands beside results: if that fails, it is a warning, because a picture never costs the numbers.

    Args:
        folder: where to. None: nothing is drawn.
        name: of the PNG.
        draw: called as `draw(*pictured, path, **options)`.
    """
    if folder is None:
        return
    path = folder / name
    try:
        draw(*pictured, path, **options)
    except Exception as error:
        logger.warning("%s could not be drawn (%s: %s); the numbers do not need it", path, type(error).__name__, error)


def draw_curves(
    curves: Mapping[str, Mapping[float, float]],
    path: str | os.PathLike,
    *,
    x: str,
    y: str,
    title: str,
    log_x: bool = False,
    baselines: Mapping[str, float] | None = None,
) -> Path:
    """Draw curves of points (x, y) to a PNG, each with its name and its best point in the legend.

    Args:
        curves: of each name its points. `y` is a share, and so is `x` without `log_x`: axes of shares go from 0 to 1,
            so that a small difference looks small.
        x, y: names of the axes.
        log_x: a logarithmic axis for x.
        baselines: of each name a value of y to compare with, as a dotted line.
    """
    from matplotlib.ticker import NullLocator

    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for name, points in curves.items():
        best = max(points, key=points.__getitem__)
        label = f"{name}: best {points[best]:.3f} at {best:.3g}" if log_x else name
        axes.plot(list(points), list(points.values()), marker="o", markersize=4, label=label)
    for name, value in (baselines or {}).items():
        axes.axhline(value, color="0.4", linestyle=":", linewidth=1.2, label=f"{name}: {value:.3f}")
    if log_x:
        axes.set_xscale("log")
        ticks = sorted({value for points in curves.values() for value in points})
        if len(ticks) <= 8:  # as they were asked for; more would overlap
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the plot, where it covers no point.
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.1, 0.0), frameon=False, fontsize=9
    )
    return save_figure(figure, path)
