"""Histograms of similarities and scores, as SVG in the page of the report."""

import numpy as np
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ...pictures.figures import new_figure, svg_text
from ..algorithms.histograms import Histogram


def draw_histogram(counts: Histogram) -> str:
    """A histogram as SVG text, logarithmic, with the threshold if there is one. A line below it says what it cannot
    show.
    """
    bins, edges, threshold = np.array(counts.bins), counts.edges, counts.threshold
    figure = new_figure(6.4, 2.7)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    centers = (edges[1:] + edges[:-1]) / 2
    beyond = np.zeros(len(bins), bool)
    if threshold is not None:
        beyond = centers > threshold if counts.side == "above" else centers < threshold
    axes.stairs(np.where(beyond, 0, bins), edges, fill=True, color="#4878a8")
    axes.stairs(np.where(beyond, bins, 0), edges, fill=True, color="#c8553d")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    margin = 0.025 * (counts.high - counts.low)
    ends = [edges[np.flatnonzero(bins)[0]], counts.high, *([] if threshold is None else [threshold])]
    axes.set_xlim(min(ends) - margin, max(ends) + margin / 2)
    if threshold is not None:
        axes.axvline(threshold, color="black", linewidth=1)
        axes.annotate(
            f" {counts.label} {threshold}: {getattr(counts, counts.side):,}", (threshold, 0.97),
            xycoords=("data", "axes fraction"), va="top", fontsize=9,
        )  # fmt: skip
    axes.set_title(counts.title, fontsize=10, loc="left")
    axes.set_xlabel(counts.quantity + not_shown(counts), fontsize=9)
    axes.set_ylabel(counts.unit, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return svg_text(figure)


def not_shown(counts: Histogram) -> str:
    """What a histogram leaves out, as the end of a line; empty if it shows everything."""
    if not counts.unknown:
        return ""
    why = "for which the search found nothing"
    if counts.floor is not None:
        why = f"below {counts.floor}, where the search stops"
    return f"  (not shown: {counts.unknown:,} {counts.unit} {why})"
