"""Blocks of the documents, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: the page it is on, the line it begins on, its language ("" for a shell's), and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a Markdown page."""
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        found.append(Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


def all_blocks(language: str) -> list[Block]:
    """Those of README and docs in a language."""
    blocks = [block for page in PAGES for block in blocks_of(str(page.relative_to(ROOT)), page.read_text())]
    return [block for block in blocks if block.language == language]


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell's block as words: variables are filled in, comments and line breaks are gone."""
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
            commands.append(words)
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
