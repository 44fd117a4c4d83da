"""A user's own modules: `extensions/` is where Python looks, here and in processes that are started."""

import os
import sys
from pathlib import Path

import pytest


EXTENSIONS = Path(__file__).parent / "extensions"


@pytest.fixture(autouse=True)
def modules_of_the_user(monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXTENSIONS), *filter(None, sys.path)]))
