"""Parsing a command line by its declared options, with `--help`, and with one sentence for each error."""

import argparse
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from .named_objects import did_you_mean
from .options import NO, REQUIRED, YES, Option, OptionError, read_mapping, refuse_missing
from .public_names import without_secrets
from .recipe_files import read_recipe


NOT_A_FLAG = (
    "a word on the command line belongs to no flag (it is not repeated here, since it may be a token); check the names"
    " of the flags, and put quotes around a value with spaces."
)


# Names of the same options in other commands and other packages. They are accepted, but no help lists them.
OTHER_NAMES = {
    "output": "output_dir", "output_dir": "output", "destination": "output",
    "source": "model", "folder": "model", "model_name_or_path": "model",
}  # fmt: skip


CONFIG = Option("config", str, "Recipe: the name of one of the package, or a YAML file of the names below.", None)


class Parser(argparse.ArgumentParser):
    """
    argparse that prints one sentence for an error, instead of the usage, which is longer than a screen.

    Attributes:
        below: lines at the end of the help.
    """

    below = ""

    def format_help(self) -> str:
        return super().format_help() + (f"\n{self.below}\n" if self.below else "")

    def error(self, message: str) -> None:
        raise OptionError(f"{without_secrets(message)}.")


def build_parser(options: Mapping[str, Option], prog: str | None = None, description: str | None = None) -> Parser:
    """The parser of these options, with their `--help`. Words that belong to no flag are not parsed."""
    needed = [option for option in options.values() if option.default is REQUIRED and not option.is_positional]
    words = [_place(option) for option in options.values() if option.is_positional]
    usage = " ".join(["%(prog)s", *words, *(f"--{option.name} ..." for option in needed), "[options]"])
    parser = Parser(prog=prog, usage=usage, description=description, allow_abbrev=False, add_help=False)
    groups: dict[tuple[str, str] | None, Any] = {None: parser}
    parser.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    for option in options.values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(*option.group)
        _add(option, groups[option.group])
    return parser


def _place(option: Option) -> str:
    """How the usage shows a word without a flag."""
    return option.name.upper() if option.default is REQUIRED else f"[{option.name.upper()}]"


def _add(option: Option, parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flag of an option. Its words are kept unchanged, for `Option.read`."""
    about: dict[str, Any] = {"help": option.full_help().replace("%", "%%"), "default": argparse.SUPPRESS}
    metavar = "|".join(map(str, option.choices)) or option.name.upper().split("_")[-1]
    if option.is_list or option.kind is dict:
        about["nargs"] = option.length or ("*" if option.is_optional else "+")
        metavar = "NAME=VALUE" if option.kind is dict else (metavar,) * option.length if option.length else metavar
    elif option.kind is bool:
        about["nargs"], metavar = "?", "true|false"
    parser.add_argument(f"--{option.name}", metavar=metavar, **about)


def read_words(
    options: Mapping[str, Option],
    words: Sequence[str],
    parser: Parser | None = None,
    *,
    may_repeat: Container[str] = (),
) -> dict[str, Any]:
    """
    The values on a command line, in the types of the options.

    `--batch-size` is `--batch_size`; `--no-progress` is `--progress false`; no flag may be shortened. Positional
    options may also be given by their flag. Words without a flag belong to the other positional options, in their
    order.

    Args:
        words: of the command line.
        parser: of these options, by default a plain one.
        may_repeat: names of flags that may be given again; the last one counts.

    Raises:
        `OptionError`: an unknown flag (the message names the nearest one), a word that belongs to no flag, or a value
            that `Option.read` refuses. The message repeats no word that may be a token.
    """
    found, unknown = (parser or build_parser(options)).parse_known_args(
        _spelled_as_declared(options, words, may_repeat)
    )
    given = vars(found)
    places = [name for name, option in options.items() if option.is_positional and name not in given]
    by_place = [word for word in unknown if word != "--"]
    if len(by_place) > len(places):
        raise OptionError(NOT_A_FLAG)
    given |= dict(zip(places, by_place, strict=False))
    return {name: options[name].read(value) for name, value in given.items()}


def _spelled_as_declared(options: Mapping[str, Option], words: Sequence[str], may_repeat: Container[str]) -> list[str]:
    """The words with every flag spelled as the parser knows it, and with the value of a switch in the same word."""
    spelled, given, left = [], set(), list(words)[::-1]
    while left:
        word = left.pop()
        if not word.startswith("--") or word in ("--", "--help"):
            if word.startswith("-") and not _is_number(word) and word not in ("--", "--help", "-h"):
                raise OptionError(NOT_A_FLAG)
            spelled.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        is_negated = name not in options and name.startswith("no_") and _is_switch(options.get(name[3:]))
        name = name[3:] if is_negated else name
        if name not in options:
            name = OTHER_NAMES.get(name, name)
        if name not in options:
            raise OptionError(_no_such_flag(word, options))
        if name in given and name not in may_repeat:
            raise OptionError(f"`--{name}` is given twice; give it once, with all its values.")
        given.add(name)
        if is_negated:
            equals, value = "=", "false"
        elif _is_switch(options[name]) and not equals:
            equals, value = "=", left.pop() if left and left[-1].lower() in YES + NO else "true"
        spelled.append(f"--{name}{equals}{value}")
    return spelled


def _is_switch(option: Option | None) -> bool:
    return option is not None and option.kind is bool and not option.is_list


def _is_number(word: str) -> bool:
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False


def _no_such_flag(word: str, options: Mapping[str, Option]) -> str:
    """The message for an unknown flag. It shows at most the name of the flag, because the rest may be a token."""
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    if not re.fullmatch(r"[a-z_]{1,40}\d?", name):
        return NOT_A_FLAG
    near = did_you_mean(name, options)
    return f"there is no flag --{name}.{near or ' --help lists those that there are.'}"


def read_recipe_and_words(
    options: Mapping[str, Option],
    words: Sequence[str],
    parser: Parser | None = None,
    *,
    known: Iterable[str] = (),
    without_config: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
) -> dict[str, Any]:
    """
    The values of the recipe of `--config`, if there is one. Flags of the same names override them. If a flag is given
    several times, the last one counts, as launch scripts need it.

    Args:
        parser: of these options and `CONFIG`, by default a plain one.
        known: names that need not be given.
        without_config: gives the recipe from the values of the flags, if there is no `--config`.

    Raises:
        `ValueError`: as `read_mapping`, `read_words` and `recipe_files.read_recipe`.
    """
    given = read_words({"config": CONFIG, **options}, words, parser, may_repeat=options)
    path = given.pop("config", None)
    if path is None:
        recipe = without_config(given)
    else:
        recipe = read_mapping(options, read_recipe(path), without_secrets(path))
    refuse_missing(options, {*known, *recipe, *given})
    return recipe | given


def values_of(name: str, words: Sequence[str]) -> list[str]:
    """The values of a flag that is needed before the options are known; empty if it is not given."""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            following = takewhile(lambda word: not word.startswith("-"), words[place + 1 :])
            return [value] if equals else list(following)
    return []
