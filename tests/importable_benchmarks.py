"""Benchmarks, which import their neighbours, as modules of a test."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def benchmarks_are_importable():
    folder = str(Path(__file__).parents[1] / "examples" / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
