"""`dinov2-hf report`."""

from pathlib import Path


def report(run: Path, *, output: Path | None = None, overwrite: bool = False) -> dict[str, str]:
    """Write the page of a run: curves, pictures, results, its recipe, and what to do next, in one HTML file.

    Args:
        run: the output folder of a pretraining or a distillation, finished or not.
        output: HTML file (default: report.html in the folder of the run).
        overwrite: replace an --output that is there; the report.html of the run is always written anew.
    """
    from ..runs.page.report_file import write_report

    written = write_report(run, output, overwrite=overwrite)
    print(written)
    return {"output": str(written)}
