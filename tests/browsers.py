"""Chromium without a window, for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = "DINOV2_HF_CHROMIUM"  # the path of another one


def find_chromium() -> str | None:
    """The one of the environment variable, or of the system."""
    return os.environ.get(CHROMIUM) or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def open_page(address: str | Path, width: int = 1200, height: int = 1000) -> Iterator:
    """
    A page of Playwright. At the end it must have said nothing of errors, and asked nobody but this machine.

    Where there is no browser the test is skipped and says what is missing.

    Args:
        address: a URL of this machine, or an HTML file.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="the tests of pages need the package playwright")
    executable = find_chromium()
    if executable is None:
        pytest.skip(f"there is no Chromium here; install one, or name it in {CHROMIUM}")
    address = address.resolve().as_uri() if isinstance(address, Path) else address
    strangers, errors = [], []

    def note(request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "http://localhost")):
            strangers.append(request.url)

    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("request", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        yield page
        browser.close()
    assert not errors
    assert not strangers
