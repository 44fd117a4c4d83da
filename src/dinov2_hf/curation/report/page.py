"""The page of the report: one HTML file that needs nothing else."""

from typing import Any

from jinja2 import Environment, PackageLoader

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
        report: from `summary.gather_report`.
        histograms: as SVG.
        kept, dropped: titles and groups of pictures.
    """
    environment = Environment(loader=PackageLoader(__package__, "."), autoescape=True, trim_blocks=True)
    return environment.get_template("page.html.jinja").render(
        report=report,
        histograms=histograms,
        kept=kept,
        dropped=dropped,
        total=report["funnel"][0]["images_in"],
        lead=summary_line(report),
        configuration="\n".join(f"{name}: {value}" for name, value in report["configuration"].items()),
        side=SIDE,
    )


def summary_line(report: dict[str, Any]) -> str:
    """The result in a sentence."""
    dataset = report["dataset"]
    line = f"{dataset['from_the_pool']:,} of {report['funnel'][0]['images_in']:,} images of the pool"
    if dataset["curated_as_they_are"]:
        line += f", and {dataset['curated_as_they_are']:,} curated images as they are"
    if dataset["rows"] != dataset["images"]:
        line += f"; with repeats (multiset) {dataset['rows']:,} rows"
    return line + "."
