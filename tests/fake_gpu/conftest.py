import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def benchmarks_are_importable():
    """The simulation is one of the benchmarks, which import their neighbours."""
    folder = str(Path(__file__).parents[2] / "examples" / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
