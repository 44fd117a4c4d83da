"""
Blocks of the documents, and the commands in them. Blocks of commands and of Python are run by `test_snippets`, unless
a line before one of them says why not:

    <!-- not run: needs eight GPUs -->

or one for all commands of a page: `<!-- no command of this page is run: they measure for hours -->`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = ("", "bash")
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>\S[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
PAGE_NOT_RUN = re.compile(r"^<!-- no command of this page is run: (\S[^\n]*) -->$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """
    A fenced block: the page it is on, the line it begins on, its language ("" or "bash" for a shell's), its text, and
    why it is not run, if so.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a Markdown page."""
    of_page = PAGE_NOT_RUN.search(text)
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start("language")].count("\n") + 1
        reason = of_page[1] if of_page and match["language"] in COMMANDS else match["reason"]
        found.append(Block(page, line, match["language"], match["text"], reason))
    return found


def all_blocks(*languages: str) -> list[Block]:
    """Those of README and docs in some languages."""
    blocks = [block for page in PAGES for block in blocks_of(str(page.relative_to(ROOT)), page.read_text())]
    return [block for block in blocks if block.language in languages]


def commands_of(block: Block) -> list[list[str]]:
    """
    The commands of a shell's block as words: variables are filled in, comments, line breaks and the files that output
    goes to are gone, and of `eval "$(command)"` the command is left.
    """
    variables, commands = {}, []
    text = block.text.replace("\\\n", " ")
    text = re.sub(r'"[^"]*"', lambda match: match[0].replace("\n", " "), text)
    for line in text.splitlines():
        for name in sorted(variables, key=len, reverse=True):
            line = line.replace(f"${name}", variables[name])
        words = shlex.split(line, comments=True)
        assignment = re.fullmatch(r"([A-Z])=(.*)", words[0], re.DOTALL) if len(words) == 1 else None
        if assignment:
            variables[assignment[1]] = assignment[2]
        elif words:
            if words[0] == "eval":
                words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
            commands.append(words[: words.index(">")] if ">" in words else words)
    return commands


def without_launcher(words: list[str]) -> list[str]:
    """A command without what starts it: environment, timing, `accelerate launch` and its flags, `python`."""
    while words and (re.match(r"\w+=", words[0]) or words[0].startswith("/usr/bin/time") or words[0] == "-v"):
        words = words[1:]
    if words[:2] == ["accelerate", "launch"]:
        place = next(i for i, word in enumerate(words) if word.endswith(".py") or word == "-m")
        words = words[place:]
        if words[0] == "-m":
            words = ["dinov2-hf" if words[1] == "dinov2_hf.cli" else words[1], *words[2:]]
    elif words[0] == "python" and words[1] != "-m":
        words = words[1:]
    return words
