"""
`docs/extending.md` shows the modules of `tests/extension/extensions/`. A line

    <!-- code: tests/extension/extensions/gram_anchoring.py, at most 25 lines -->

stands before the block that shows a module. `python -m tests.docs.extending` writes the blocks as the modules are.
"""

import re

from tests.docs.documents import ROOT


PAGE = ROOT / "docs" / "extending.md"
MODULES = ROOT / "tests" / "extension" / "extensions"
MARKER = re.compile(
    r"^<!-- code: (?P<path>\S+), at most (?P<lines>\d+) lines -->\n(?:\n*```python\n.*?^```\n)?",
    re.DOTALL | re.MULTILINE,
)


def with_code(page: str) -> str:
    """The page with the code of each marked module behind its marker."""

    def block(match: re.Match) -> str:
        marker = match[0].partition("\n")[0]
        return f"{marker}\n```python\n{(ROOT / match['path']).read_text()}```\n"

    return MARKER.sub(block, page)


if __name__ == "__main__":
    PAGE.write_text(with_code(PAGE.read_text()))
