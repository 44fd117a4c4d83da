"""Writes the page of a run to a file, in its folder or elsewhere."""

from pathlib import Path

from ...atomic_files import new_file
from ..run_folder import PAGE
from .run_facts import read_run
from .run_page import render_page


def write_report(run: Path, output: Path | None = None, *, overwrite: bool = False) -> Path:
    """
    Write the page of a run. This also works during the training.

    Args:
        run: its output folder.
        output: an HTML file; `None` for `report.html` in the folder of the run.
        overwrite: replace `output`. The page in the folder of a run belongs to the run, and is always replaced.

    Raises:
        ValueError: it is not a run, the file exists, or it is not an HTML file.
    """
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`output` is {output}, but must end in .html.")
    path = run / PAGE if output is None else output
    facts = read_run(run)
    with new_file(path, overwrite=overwrite or output is None) as partial:
        partial.write_text(render_page(facts), encoding="utf-8")
    return path
