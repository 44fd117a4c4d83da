"""
Calls a subcommand, a function of `cli` whose signature and docstring are its options and its help.

Both are read from the text of its file. The file is only imported after the command line has been parsed, so help and
errors in the command line come at once. An error of the user is one sentence on standard error and exit status 1. If
the command line cannot be parsed, the status is 2, and the usage of the subcommand is printed. Anything else is a
fault of the package, with its traceback.
"""

import errno
import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dinov2_hf_command import main

from ..command_lines import Parser, build_parser, read_recipe_and_words, read_words, values_of
from ..conversion.exports.formats import ExportCheckError
from ..declarations import declared
from ..options import Option, OptionError, options_of, refuse_missing
from ..public_names import without_secrets
from ..recipe_files import read_header, read_recipe, recipe_names
from .talk import Talk, add_help, split_talk
from .user_words import in_users_words


__all__ = ["call", "main", "options_of_command"]
# Errors of files and folders that a user named (missing, not readable, not writable, of another kind), and of full
# disks.
MISTAKES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def call(name: str, words: list[str]) -> None:
    """
    Run the subcommand `name`, the function of that name in the file of that name.

    It prints for people. Its result, if its signature has one, is for `--json`. A function of `*words` parses them
    itself. `more_options` has further options that are not in a signature. The function gets the given ones as
    keywords.
    """
    options: dict[str, Option] = {}
    parser, talk = None, Talk()
    try:
        function = declared(f"cli.{name}:{name}")
        words, talk = split_talk(words, has_results=_returns(function))
        options = options_of_command(name, words)
        parser = parser_of(name, options, words)
        _refuse_other_recipe(options, words)
        if _takes_words(function):
            is_resumed = values_of("resume_from_checkpoint", words)  # then it has its own recipe
            read_recipe_and_words(options, words, parser, known=options if is_resumed else ())
            given, places = {}, words
        else:
            given, places = read_words(options, words, parser), []
            refuse_missing(options, given)
        with talk.in_force():
            results = getattr(import_module(f".{name}", __package__), name)(*places, **given)
        if talk.json and results is not None:  # only the first of several processes has them
            print(json.dumps(without_secrets(_in_words(results)), indent=2, default=str, allow_nan=False))
    except BrokenPipeError:
        raise  # not an error of the user: `dinov2_hf_command` handles it
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if talk.verbose:
            traceback.print_exc()
        sentence = f"error: {without_secrets(in_users_words(sentence, {name: f'--{name}' for name in options}))}"
        if not isinstance(error, OptionError):
            sys.exit(sentence)
        print(sentence, file=sys.stderr)
        usage = parser.format_usage() if parser else f"usage: dinov2-hf {name} [options]\n"
        print(f"{' '.join(usage.split())}; `dinov2-hf {name} --help` lists them.", file=sys.stderr)
        sys.exit(2)


def options_of_command(name: str, words: Sequence[str]) -> dict[str, Option]:
    """The options of a subcommand, with those that depend on its words; nothing heavy is imported for them."""
    options = options_of(declared(f"cli.{name}:{name}"))
    more = _more(name)
    return options | more.more_options(words) if more else options


def _more(name: str) -> Any | None:
    """The module of a subcommand in `more_options`, if it has one."""
    is_there = (Path(__file__).parent / "more_options" / f"{name}.py").is_file()
    return import_module(f".more_options.{name}", __package__) if is_there else None


def parser_of(name: str, options: dict[str, Option], words: Sequence[str]) -> Parser:
    """The parser of a subcommand with these options, for its help."""
    function = declared(f"cli.{name}:{name}")
    parser = build_parser(options, f"dinov2-hf {name}", function.__doc__.split("\n\n")[0])
    add_help(parser, has_results=_returns(function))
    if hasattr(_more(name), "more_help"):
        parser.below = _more(name).more_help(words)
    return parser


def _refuse_other_recipe(options: dict[str, Option], words: Sequence[str]) -> None:
    """`OptionError` for a recipe of the package that another command reads."""
    recipe = values_of("config", words)[:1] if "config" in options else []
    if recipe and recipe[0] in recipe_names() and not read_recipe(recipe[0]).keys() <= options.keys():
        raise OptionError(f"`config` is {recipe[0]}, a recipe for `dinov2-hf {read_header(recipe[0]).command}`.")


def _sentence(error: Exception) -> str | None:
    """The sentence for an error of the user; None for a fault of the package."""
    if isinstance(error, ValueError | ImportError | ExportCheckError):  # ImportError: an extra that is not installed
        return str(error)
    from huggingface_hub.errors import HTTPError  # from its HTTP client, which depends on its version

    if not isinstance(error, OSError | HTTPError):
        return None
    # Without a number it is the message of a library about something that it cannot read or find on the Hub.
    number = getattr(error, "errno", None)
    if number is not None and number not in MISTAKES and not isinstance(error, ConnectionError | TimeoutError):
        return None
    has_name = getattr(error, "filename", None) is not None and error.strerror
    return f"{error.filename}: {error.strerror}" if has_name else str(error)


def _in_words(results: Any) -> Any:
    """Results with non-finite numbers as "nan", "inf" and "-inf", because JSON has no such numbers."""
    if isinstance(results, dict):
        return {name: _in_words(value) for name, value in results.items()}
    if isinstance(results, list | tuple):
        return [_in_words(value) for value in results]
    return str(results) if isinstance(results, float) and not math.isfinite(results) else results


def _takes_words(function: Callable) -> bool:
    """Whether a subcommand parses its words itself."""
    return any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(function).parameters.values())


def _returns(function: Callable) -> bool:
    """Whether a subcommand returns results in addition to its prints."""
    return inspect.signature(function).return_annotation is not None
