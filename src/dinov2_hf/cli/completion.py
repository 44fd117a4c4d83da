"""`dinov2-hf completion`."""

import argparse

from dinov2_hf_command import COMMANDS, summary

from ..declarations import declared
from ..options import Option
from ..recipe_files import recipe_names
from .main import options_of_command, parser_of


def completion(shell: str) -> None:
    """The script by which a shell completes commands, options, choices, recipes and files; `eval` it.

    Args:
        shell: one that shtab knows: bash, zsh, fish, ...
    """
    try:
        import shtab
    except ImportError:
        raise ImportError('completion needs shtab: pip install "dinov2_hf[completion]".') from None
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"`shell` is {shell}; it must be {' or '.join(shtab.SUPPORTED_SHELLS)}.")
    parser = argparse.ArgumentParser(prog="dinov2-hf")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        words = ["--protocol", *protocols()] if name == "evaluate" else []
        options = options_of_command(name, words)
        flags = parser_of(name, options, words)
        for option in options.values():
            if option.is_positional:
                flags.add_argument(option.name, nargs="?")
        for action in flags._actions:
            option = options.get(action.dest)
            if option is None:  # --help and what it is beside
                continue
            action.choices = choices(name, option)
            if action.choices is None:
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[flags], add_help=False, help=summary(name))
    print(shtab.complete(parser, shell))


def choices(command: str, option: Option) -> list[str] | None:
    """The possible words of an option, if they are known; otherwise files are offered."""
    if option.name == "config" or (command, option.name) == ("recipes", "name"):
        return recipe_names()
    if option.name == "protocol":
        return protocols()
    if option.kind is bool:
        return ["true", "false"]
    return [*map(str, option.choices)] or None


def protocols() -> list[str]:
    """The protocols of the package."""
    return declared("evaluation.protocols:PROTOCOLS").names()
