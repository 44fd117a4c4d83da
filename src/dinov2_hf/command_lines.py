"""The words of a command line, by options: flags as they are declared, with `--help`, and mistakes in one sentence."""

import argparse
import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from .named_objects import did_you_mean
from .options import NO, REQUIRED, YES, Option, OptionError, read_mapping, refuse_missing
from .public_names import without_secrets
from .recipe_files import read_recipe


NOT_A_FLAG = (
    "a word on the command line belongs to no flag (it is not repeated here, since it may be a token); check the names"
    " of the flags, and put quotes around a value with spaces."
)


class Parser(argparse.ArgumentParser):
    """argparse with one sentence for a mistake, in place of the usage, which is longer than a screen."""

    def error(self, message: str) -> None:
        raise OptionError(f"{without_secrets(message)}.")


def build_parser(options: Mapping[str, Option], prog: str | None = None, description: str | None = None) -> Parser:
    """The parser of these options, with their `--help`."""
    needed = [option for option in options.values() if option.default is REQUIRED]
    words = [option.name if option.is_positional else f"--{option.name} ..." for option in needed]
    usage = " ".join(["%(prog)s", *words, "[options]"])
    parser = Parser(prog=prog, usage=usage, description=description, allow_abbrev=False, add_help=False)
    groups: dict[tuple[str, str] | None, Any] = {None: parser}
    parser.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    for option in options.values():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(*option.group)
        _add(option, groups[option.group])
    return parser


def _add(option: Option, parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The flag of an option, whose words are left as they are, for `Option.read`."""
    about: dict[str, Any] = {"help": option.full_help().replace("%", "%%"), "default": argparse.SUPPRESS}
    metavar = "|".join(map(str, option.choices)) or option.name.upper().split("_")[-1]
    if option.is_list or option.kind is dict:
        about["nargs"] = option.length or ("*" if option.is_optional else "+")
        metavar = "NAME=VALUE" if option.kind is dict else (metavar,) * option.length if option.length else metavar
    elif option.kind is bool:
        about["nargs"], metavar = "?", "true|false"
    if option.is_positional:
        parser.add_argument(option.name, **about)
    else:
        parser.add_argument(f"--{option.name}", metavar=metavar, **about)


def read_words(
    options: Mapping[str, Option],
    words: Sequence[str],
    parser: Parser | None = None,
    *,
    may_repeat: Container[str] = (),
) -> dict[str, Any]:
    """
    What is given on a command line, in the types of the options.

    `--batch-size` is `--batch_size`; `--no-progress` is `--progress false`; no flag may be shortened.

    Args:
        words: of the command line.
        parser: of these options, by default a plain one.
        may_repeat: names of flags that may be given again; the last one counts.

    Raises:
        `OptionError`: a flag that there is not (with the nearest one), a word that belongs to none, or a value that
            `Option.read` refuses. The sentence repeats no word that may be a token.
    """
    found, unknown = (parser or build_parser(options)).parse_known_args(
        _spelled_as_declared(options, words, may_repeat)
    )
    if unknown:
        raise OptionError(NOT_A_FLAG)
    return {name: options[name].read(value) for name, value in vars(found).items()}


def _spelled_as_declared(options: Mapping[str, Option], words: Sequence[str], may_repeat: Container[str]) -> list[str]:
    """The words with every flag as the parser knows it, and a switch's value within its own word."""
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
        if name not in options or options[name].is_positional:
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
    """A sentence on a flag that there is not, which shows of it the name at most, since a token may stand there."""
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    if not re.fullmatch(r"[a-z_]{1,40}\d?", name):
        return NOT_A_FLAG
    near = did_you_mean(name, [known for known, option in options.items() if not option.is_positional])
    return f"there is no flag --{name}.{near or ' --help lists those that there are.'}"


def read_recipe_and_words(
    options: Mapping[str, Option],
    words: Sequence[str],
    *,
    known: Iterable[str] = (),
    without_config: Callable[[dict[str, Any]], dict[str, Any]] = lambda _: {},
) -> dict[str, Any]:
    """
    What the recipe of `--config` says, if there is one, and what flags of the same names say in its place. Of a flag
    that is given again the last one counts, as launch scripts need it.

    Args:
        known: names that need not be given.
        without_config: the recipe where there is no `--config`, of what the flags say.

    Raises:
        `ValueError`: as `read_mapping`, `read_words` and `recipe_files.read_recipe`.
    """
    config = Option("config", str, "Recipe: the name of one of the package, or a YAML file of the names below.", None)
    given = read_words({"config": config, **options}, words, may_repeat=options)
    path = given.pop("config", None)
    if path is None:
        recipe = without_config(given)
    else:
        recipe = read_mapping(options, read_recipe(path), without_secrets(path))
    refuse_missing(options, {*known, *recipe, *given})
    return recipe | given


def value_of(name: str, words: Sequence[str]) -> str | None:
    """The value of a flag, for what must be known before the options are."""
    for word, following in zip(words, [*words[1:], None], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name:
            return value if equals else following
    return None
