"""The page of the report: one HTML file that needs nothing else."""

from typing import Any

from jinja2 import Environment, PackageLoader

from .examples import SIDE, ExampleGroup


def templates(*, autoescape: bool) -> Environment:
    """The templates of this folder; their filter `number` writes 1234 as 1,234."""
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=autoescape, trim_blocks=True)
    environment.filters["number"] = "{:,}".format
    return environment


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
        templates(autoescape=True)
        .get_template("page.html.jinja")
        .render(report=report, histograms=histograms, kept=kept, dropped=dropped, side=SIDE)
    )
