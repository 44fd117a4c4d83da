"""Every command in README and docs names scripts, recipes and flags that exist."""

import contextlib
import io
import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest

from dinov2_hf.cli import main
from dinov2_hf.recipe_files import RECIPES
from tests.docs.documents import COMMANDS as SHELL
from tests.docs.documents import ROOT, all_blocks, commands_of, without_launcher


COMMANDS = [
    pytest.param(words, id=f"{block}-{number}")
    for block in all_blocks(*SHELL)
    for number, words in enumerate(map(without_launcher, commands_of(block)))
    if words[0] == "dinov2-hf" or words[0].endswith(".py")
]


# These take the flags of a training too.
BEHIND = {
    "examples/benchmarks/pretraining_step.py": "examples/pretrain.py",
    "examples/benchmarks/distillation.py": "examples/distill.py",
    "examples/benchmarks/simulated_step.py": "examples/pretrain.py",
}


@cache
def help_of(*command: str) -> str:
    """What `command --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        start(command)
    return printed.getvalue()


def start(command: tuple[str, ...]) -> None:
    if command[0] == "dinov2-hf":
        main([*command[1:], "--help"])
        return
    script = ROOT / command[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *command[1:], "--help"])
        patch.syspath_prepend(str(script.parent))
        runpy.run_path(str(script), run_name="__main__")


def test_there_are_commands():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("words", COMMANDS)
def test_command_names_what_exists(words):
    has_subcommand = words[0] == "dinov2-hf" or words[0].endswith("curation.py")
    command = words[: 2 if has_subcommand else 1]
    if words[1:2] == ["evaluate"] and not words[2].startswith("-"):  # options of protocols, where they are named
        command = words[:3]
    explained = help_of(*command)
    if words[0] in BEHIND:
        explained += help_of(BEHIND[words[0]])
    flags = set(re.findall(r"--\w+", explained))
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--"):
            assert flag in flags
    for name in words:
        if name.startswith("examples/"):
            assert Path(ROOT, name).exists(), name
    for before, name in zip(words, words[1:], strict=False):
        if before in ("--config", "--teacher_recipe") and not name.endswith((".yaml", "...")):
            assert (RECIPES / f"{name}.yaml").is_file(), name


def test_what_the_security_page_names_exists():
    text = (ROOT / "SECURITY.md").read_text()
    names = re.findall(r"\b(?:tests|docs|examples)/[\w/.]*\w", text)
    assert len(names) > 8
    assert all((ROOT / name).exists() for name in names)
