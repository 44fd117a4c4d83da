"""Plots and pictures as PNG files that appear complete or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path


def new_figure(width: float, height: float):
    """A matplotlib figure of this many inches, which belongs to no window and to no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | os.PathLike, **options) -> Path:
    """Write `figure` to a PNG; missing folders are made, `options` are those of matplotlib's `savefig`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.png")
    figure.savefig(partial_path, **{"dpi": 150, "bbox_inches": "tight"} | options)
    os.replace(partial_path, path)
    return path


def draw_curves(
    curves: Mapping[str, Mapping[float, float]],
    path: str | os.PathLike,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    title: str | None = None,
) -> Path:
    """Draw curves of points (x, y), each under its name in the legend, to a PNG."""
    from matplotlib.ticker import NullLocator

    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(list(points), list(points.values()), marker="o", markersize=4, label=name)
    if log_x:
        axes.set_xscale("log")
        ticks = sorted({value for points in curves.values() for value in points})
        if len(ticks) <= 8:  # as they were asked for; more would overlap
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    if title:
        axes.set_title(title)
    return save_figure(figure, path)
