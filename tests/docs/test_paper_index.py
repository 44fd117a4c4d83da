"""The index of the paper names files that exist, and names that these files define."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.documents import ROOT


ROWS = [
    (re.findall(r"`([^`]+)`", files), re.findall(r"`([^`]+)`", names))
    for _, files, names in re.findall(
        r"^\|(.*)\|(.*`.*)\|(.*)\|$", (ROOT / "docs" / "paper_index.md").read_text(), re.MULTILINE
    )
]


def defined_in(path: Path) -> set[str]:
    """Functions and classes at the top of a module."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


@pytest.mark.parametrize(("files", "names"), ROWS, ids=lambda words: "-".join(words).rpartition("/")[2])
def test_the_index_is_true(files, names):
    assert [name for name in files if not (ROOT / name).is_file()] == []
    assert names or all(name.endswith(".yaml") for name in files)
    if names:
        (file,) = files
        assert set(names) <= defined_in(ROOT / file)


def test_the_index_is_read():
    assert len(ROWS) > 50
