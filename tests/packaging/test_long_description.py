"""A package index shows README: its links and pictures lead to the repository, whose address the release names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PRINT = """
from setuptools import distutils
from distutils.core import run_setup
print(run_setup("setup.py", stop_after="init").metadata.long_description)
"""
LINK = re.compile(r"(!?)\[.*?\]\((.+?)\)")


def description(**environment: str) -> str:
    others = {name: value for name, value in os.environ.items() if name != "DINOV2_HF_REPOSITORY"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=ROOT, env=others | environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_links_and_pictures_are_absolute():
    address = "https://example.com/owner/name"
    shown = description(DINOV2_HF_REPOSITORY=f"{address}/")
    found = LINK.findall(shown)
    assert {mark for mark, _ in found} == {"", "!"}
    assert all(link.startswith("https://") for _, link in found)
    for mark, link in found:
        _, is_ours, path = link.partition(f"{address}/{'raw' if mark else 'blob'}/HEAD/")
        assert not is_ours or (ROOT / path).exists(), link
    assert "not run" not in shown


def test_without_an_address_nothing_leads_nowhere():
    shown = description()
    assert [link for _, link in LINK.findall(shown) if not link.startswith("https://")] == []
    assert "See it work" in shown


@pytest.mark.parametrize("link", sorted({link for _, link in LINK.findall((ROOT / "README.md").read_text())}))
def test_links_of_the_readme_lead_somewhere(link):
    assert link.startswith("https://") or (ROOT / link.partition("#")[0]).exists()
