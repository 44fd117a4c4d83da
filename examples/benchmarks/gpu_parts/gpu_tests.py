"""The tests that are marked `gpu`, one row for each."""

from pathlib import Path

from .part import NotMeasured, Work


ROOT = Path(__file__).parents[3]


def measure(work: Work) -> None:
    import pytest

    # Collecting all others would import what an image for GPUs may lack.
    paths = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    if not paths:
        raise NotMeasured(f"there are no tests marked gpu in {ROOT / 'tests'}; run the suite from a clone.")
    flags = ["-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", "-q", "--rootdir", str(ROOT)]
    pytest.main([*flags, "--basetemp", str(work.folder / "pytest"), *paths], plugins=[Recorder(work)])


class Recorder:
    """A plugin of pytest that records how each test ended."""

    def __init__(self, work: Work):
        self.work = work

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            row = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
            if report.outcome != "passed":
                row["why"] = str(report.longrepr)[-2000:]
            self.work.record(report.nodeid, row)

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.work.record(report.nodeid, {"outcome": "failed", "why": str(report.longrepr)[-2000:]})
