"""Reading a recipe: a flat YAML file of names and values, overridden by flags of the same names."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from transformers import HfArgumentParser, PreTrainedConfig

from ..public_names import without_secrets
from ..recipe_files import read_recipe


NOT_A_FLAG = (
    "a word on the command line belongs to no flag (it is not repeated here, since it may be a token); check the names"
    " of the flags, and put quotes around a value with spaces; --help lists what can be set."
)


class RecipeParser(HfArgumentParser):
    """An `HfArgumentParser` whose complaints are a `ValueError` of one sentence rather than a page of usage."""

    def error(self, message: str):
        if "ignored explicit argument" in message:  # of a flag that takes no value, and so of no flag
            raise ValueError(NOT_A_FLAG)
        raise ValueError(f"{without_secrets(message)}; --help lists what can be set.")


def parse_recipe(
    arguments: list[str],
    arguments_type: type,
    config_types: list[type[PreTrainedConfig]],
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple:
    """
    Read `--config recipe.yaml` (optional) and flags into an `arguments_type` and one `dict` of values for each
    configuration.

    Args:
        defaults: values for what neither recipe nor flags say, in place of those of the types.
        overrides: values in place of what recipe and flags say.

    Raises:
        `ValueError`: for a recipe that is not there or no recipe, an unknown key or flag, a value of the wrong type or
            out of its range, or one that would have no effect. The sentence repeats no word that belongs to no flag,
            since it may be a token.
    """
    parser = build_parser(arguments_type, config_types)
    path, flags = _take_config_flag(arguments)
    recipe = read_recipe(path) if path is not None else {}
    actions = {name: parser._option_string_actions[f"--{name}"] for name in _names(parser)}
    given = {name: value for name, value in (defaults or {}).items() if name in actions}
    given |= _converted(recipe, actions, path)
    for name, value in given.items():
        actions[name].required = False
        parser.set_defaults(**{name: value})
    namespace, unknown = parser.parse_known_args(flags)
    if unknown:
        raise ValueError(_unknown_words(unknown, actions))
    found = vars(namespace) | _converted(overrides or {}, actions, "`students`")
    parsed = []
    for kind in (arguments_type, *config_types):
        own = {entry.name: found[entry.name] for entry in recipe_fields(kind)}
        parsed.append(arguments_type(**own) if kind is arguments_type else own)
    _refuse_without_effect((arguments_type, *config_types), found, defaults or {})
    return tuple(parsed)


def build_parser(arguments_type: type, config_types: Iterable[type[PreTrainedConfig]]) -> RecipeParser:
    """The parser of all names of a recipe, with what `--help` says of each: units, range and default."""
    kinds = [_for_the_parser(kind) for kind in (arguments_type, *config_types)]
    parser = RecipeParser(kinds, allow_abbrev=False)
    parser.add_argument("--config", help="Recipe: a YAML file of the names below.")
    return parser


def recipe_fields(kind: type) -> list[dataclasses.Field]:
    """
    The fields of a class that a recipe may hold: of a configuration those that it declares itself, without its
    sub-configurations and without what is no matter of training (`downstream_fields`).
    """
    if not issubclass(kind, PreTrainedConfig):
        return list(dataclasses.fields(kind))
    left_out = {*kind.sub_configs, *getattr(kind, "downstream_fields", ())}
    return [
        entry
        for entry in dataclasses.fields(kind)
        if entry.name in kind.__annotations__ and entry.name not in left_out
    ]


def _for_the_parser(kind: type) -> type:
    """The fields of a recipe as a dataclass that `HfArgumentParser` reads."""
    described = _described_fields(kind.__doc__ or "")
    fields = []
    for entry in recipe_fields(kind):
        text = [entry.metadata.get("help") or described[entry.name]]
        allowed = entry.metadata.get("range")
        text += [f"{'Each' if get_origin(entry.type) is list else 'It is'} {allowed}."] if allowed else []
        options = {"default": entry.default, "metadata": {"help": " ".join(text).replace("%", "%%")}}
        if entry.default_factory is not dataclasses.MISSING:
            options["default"] = dataclasses.MISSING
            options["default_factory"] = entry.default_factory
        fields.append((entry.name, _parser_type(entry.type), dataclasses.field(**options)))
    # Those without a default come first, as everywhere.
    return dataclasses.make_dataclass(f"{kind.__name__}Values", fields)


def _described_fields(docstring: str) -> dict[str, str]:
    """What the docstring of a configuration says of each field, in the form `name (type, defaults to ...): text`."""
    texts = re.findall(
        r"^ {8}(\w+) \([^\n]*?\): (.*?)(?=^ {8}\w+ \(|^ {0,7}\S|\Z)", docstring, re.MULTILINE | re.DOTALL
    )
    in_brackets = re.compile(r" \[[^\]]*\]")  # values of recipes
    return {name: re.sub(r"\s+", " ", in_brackets.sub("", text)).replace("`", "").strip() for name, text in texts}


def _parser_type(annotation: Any) -> Any:
    """`float | int` is `float` to a parser, that knows one type at a time."""
    if get_origin(annotation) in (Union, UnionType) and float in get_args(annotation):
        return float
    return annotation


def _converted(values: Mapping[str, Any], actions: Mapping[str, argparse.Action], source: str) -> dict[str, Any]:
    """Values of a recipe in the types of their flags; those that are null say nothing."""
    for key in values:
        if key not in actions:
            shown = without_secrets(str(key))
            raise ValueError(f"{source} has the unknown key `{shown}`; {_suggestion(str(key), actions)}")
    return {name: _convert(actions[name], value) for name, value in values.items() if value is not None}


def _convert(action: argparse.Action, value: Any) -> Any:
    """A value of a recipe in the type of its flag: YAML reads 1e-3 as a text."""
    is_list, wanted = action.nargs == "+", getattr(action.type, "__name__", "value")
    wanted = {"int": "a whole number", "float": "a number", "string_to_bool": "true or false", "str": "a text"}[wanted]
    if isinstance(value, list) and not is_list:
        raise ValueError(f"`{action.dest}` is a list of {len(value)} values; it must be {wanted}.")
    converted = []
    for item in value if isinstance(value, list) else [value]:
        try:
            # A mapping is one of `students`, which are read later.
            converted.append(item if isinstance(item, dict) and is_list else action.type(str(item)))
        except (ValueError, argparse.ArgumentTypeError):
            raise ValueError(f"`{action.dest}` is {without_secrets(str(item))}; it must be {wanted}.") from None
        if isinstance(item, dict) and not is_list:
            raise ValueError(f"`{action.dest}` is a mapping; it must be {wanted}.")
    return converted if is_list else converted[0]


def _refuse_without_effect(kinds: Iterable[type], found: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """
    Raises:
        `ValueError`: a value that is neither the default of its class nor among `defaults`, of a field whose `needs`
            are not met: it would be ignored.
    """
    for entry in (entry for kind in kinds for entry in recipe_fields(kind)):
        value = found[entry.name]
        if value == entry.default or (entry.name in defaults and value == defaults[entry.name]):
            continue
        for name, needed in entry.metadata.get("needs", {}).items():
            actual = bool(found[name]) if isinstance(needed, bool) else found[name]
            if actual == needed:
                continue
            said = f"`{entry.name}` is {without_secrets(value)}" if entry.repr else f"`{entry.name}` is set"
            state = (
                f"without `{name}`" if needed is True else f"with `{name}` {'' if needed is False else found[name]}"
            )
            change = f"set `{name}`" + ("" if isinstance(needed, bool) else f" to {needed}")
            advice = "leave it out" + ("" if needed is False else f", or {change}")
            raise ValueError(f"{said}, but has no effect {state.strip()}; {advice}.")


def _take_config_flag(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The recipe's path, and the other flags."""
    paths, flags = [], []
    words = iter(arguments)
    for word in words:
        if word == "--config":
            paths.append(next(words, None))
            if paths[-1] is None:
                raise ValueError("`--config` has no value; give the path of a YAML recipe after it.")
        elif word.startswith("--config="):
            paths.append(word.removeprefix("--config="))
        else:
            flags.append(word)
    if len(paths) > 1:
        raise ValueError(f"`--config` is given {len(paths)} times; a run has one recipe, and flags override it.")
    return (paths[0] if paths else None), flags


def _names(parser: HfArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions if action.dest != "help"]


def _unknown_words(words: list[str], names: Iterable[str]) -> str:
    """A sentence on words that belong to no flag, which shows of them the name of a flag at most."""
    name = words[0].partition("=")[0].lstrip("-")
    if not words[0].startswith("-") or not re.fullmatch(r"[a-z_-]{1,40}\d?", name):
        return NOT_A_FLAG
    return f"there is no flag --{name}; {_suggestion(name, names)}"


def _suggestion(name: str, names: Iterable[str]) -> str:
    names, name = list(names), name.replace("-", "_")
    close = [known for known in names if len(name) > 3 and name in known]
    close = close or difflib.get_close_matches(name, names, n=1)
    if not close:
        return "--help lists the names that there are."
    return f"did you mean {' or '.join(f'`{known}`' for known in close[:3])}?"
