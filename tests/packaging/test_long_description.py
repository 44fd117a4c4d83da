"""A package index shows README: its links and pictures lead to the repository, whose address the release names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PRINT = """
import sys
from setuptools import distutils
from distutils.core import run_setup
print(run_setup("setup.py", sys.argv[1:], stop_after="init").metadata.long_description)
"""
LINK = re.compile(r"(!?)\[.*?\]\((.+?)\)")


def build(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """What setup.py makes of README, and what it says of it, for a command of setuptools."""
    others = {name: value for name, value in os.environ.items() if name != "DINOV2_HF_REPOSITORY"}
    return subprocess.run(
        [sys.executable, "-c", PRINT, *command], cwd=ROOT, env=others | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip


def description(**environment: str) -> str:
    return build(**environment).stdout


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


@pytest.mark.parametrize("command", ["sdist", "bdist_wheel"])
def test_a_build_without_an_address_says_what_is_missing(command):
    said = [line for line in build(command).stderr.splitlines() if "DINOV2_HF_REPOSITORY" in line]
    assert said == [
        "DINOV2_HF_REPOSITORY is not set: on a package index, README has no pictures and no links to other files."
    ]
    assert "DINOV2_HF_REPOSITORY" not in build(command, DINOV2_HF_REPOSITORY="https://example.com/a/b").stderr
    assert "DINOV2_HF_REPOSITORY" not in build("egg_info").stderr  # of an installation from a clone


@pytest.mark.parametrize("link", sorted({link for _, link in LINK.findall((ROOT / "README.md").read_text())}))
def test_links_of_the_readme_lead_somewhere(link):
    assert link.startswith("https://") or (ROOT / link.partition("#")[0]).exists()
