"""The page on extensions shows the modules that the tests run, each in as few lines as it promises."""

from tests.docs.extending import MARKER, MODULES, PAGE, ROOT, with_code


def test_the_page_shows_the_code_that_runs():
    page = PAGE.read_text()
    assert with_code(page) == page, "run `python -m tests.docs.extending`"


def test_every_module_is_shown_and_short():
    marked = {ROOT / match["path"]: int(match["lines"]) for match in MARKER.finditer(PAGE.read_text())}
    assert set(marked) == set(MODULES.glob("*.py"))
    lines = {path: sum(map(bool, map(str.strip, path.read_text().splitlines()))) for path in marked}
    assert [path.name for path, limit in marked.items() if lines[path] > limit] == []


def test_code_that_differs_is_found():
    page = "<!-- code: tests/docs/__init__.py, at most 9 lines -->\n```python\nold\n```\nText.\n"
    assert with_code(page) == "<!-- code: tests/docs/__init__.py, at most 9 lines -->\n```python\n```\nText.\n"
