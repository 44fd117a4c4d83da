"""The page of the report: one HTML file that needs nothing else."""

from typing import Any

from ...pictures.html_pages import templates
from .examples import SIDE, ExampleGroup


def render_page(
    report: dict[str, Any],
    *,
    histograms: list[str],
    kept: dict[str, list[ExampleGroup]],
    dropped: dict[str, list[ExampleGroup]],
) -> str:
    """The report as HTML.

    Args:
        report: from `numbers.gather_report`.
        histograms: as SVG.
        kept, dropped: titles and groups of pictures.
    """
    return (
        templates(__package__, autoescape=True)
        .get_template("page.html.jinja")
        .render(report=report, histograms=histograms, kept=kept, dropped=dropped, side=SIDE)
    )
