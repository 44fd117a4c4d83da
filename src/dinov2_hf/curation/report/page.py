"""The page of the report: one self-contained HTML file."""

from typing import Any

from ...pictures.html_pages import templates
from .examples import SIDE, ExampleGroup


def render_page(
    report: dict[str, Any],
    *,
    histograms: list[str],
    pairs: dict[str, dict[str, list[ExampleGroup]]],
    leaks: list[ExampleGroup],
    concepts: list[dict[str, Any]],
    kept: dict[str, list[ExampleGroup]],
    dropped: dict[str, list[ExampleGroup]],
) -> str:
    """The report as HTML.

    Args:
        report: from `numbers.gather_report`.
        histograms: as SVG.
        pairs: by stage and side of its threshold.
        leaks: curated images beside benchmarks.
        concepts: shares of clusters, and pictures.
        kept, dropped: titles and groups of pictures.
    """
    return (
        templates(__package__, autoescape=True)
        .get_template("page.html.jinja")
        .render(
            report=report,
            histograms=histograms,
            pairs=pairs,
            leaks=leaks,
            concepts=concepts,
            kept=kept,
            dropped=dropped,
            side=SIDE,
        )
    )
