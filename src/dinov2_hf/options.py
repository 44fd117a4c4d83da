"""
Options of a command or a run, as a signature or a dataclass declares them: as flags, as lines of a YAML recipe, and in
`--help`.

A field or a keyword is described once, in its declaration: its type, its default, its range or choices, its help. An
`Option` is made from this. Words of a command line and values of a recipe go through `Option.read`, so that both get
the same types and the same error messages.
"""

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from .named_objects import did_you_mean
from .public_names import without_secrets
from .recipe_files import parse_mapping, parse_value
from .value_ranges import Range


WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
YES, NO = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
REQUIRED = inspect.Parameter.empty
LISTS = (list, tuple, Sequence, Iterable)


class OptionError(ValueError):
    """An error in an option of a command line or a recipe, in one sentence."""


@dataclass(frozen=True)
class Option:
    """
    Args:
        name: of the flag `--name` and of the key in a recipe.
        kind: the type of the value, or of each value of a list: int, float, bool, str, Path, dict (a mapping), or
            `Any` for whatever YAML reads.
        help: its text in `--help`; a range, choices and a default are added.
        default: `REQUIRED` if it must be given.
        is_list: whether it takes several values.
        length: the number of these values, if that is fixed.
        is_optional: whether it may be null.
        may_be_mapping: whether a mapping is allowed instead of a value of `kind`.
        choices: the words that are allowed.
        allowed: the range of a number, or of each number in a list.
        needs: values of other options, by name, without which this one has no effect (`True` is any value).
        is_secret: whether its value must never be shown.
        is_positional: whether it may be given on the command line by its position, without its flag.
        group: title and description of its part of `--help`.
    """

    name: str
    kind: Any
    help: str = ""
    default: Any = REQUIRED
    is_list: bool = False
    length: int | None = None
    is_optional: bool = False
    may_be_mapping: bool = False
    choices: tuple = ()
    allowed: Range | None = None
    needs: Mapping[str, Any] = field(default_factory=dict)
    is_secret: bool = False
    is_positional: bool = False
    group: tuple[str, str] | None = None

    def read(self, value: Any) -> Any:
        """
        Convert a value of a recipe, or the words of a command line, to the type of the option.

        Raises:
            `OptionError`: it has another type, is out of its range, or is not one of the choices.
        """
        if value is None or value in ("null", ["null"]):
            if self.is_optional:
                return None
            raise OptionError(f"`{self.name}` is null; it must be {self._wanted()}.")
        if self.kind is dict and not self.is_list:
            read = self._mapping(value)
        elif self.is_list:
            read = [self._one(item) for item in self._items(value)]
            if self.length not in (None, len(read)):
                raise OptionError(f"`{self.name}` has {len(read)} values; it must have {self.length}.")
        elif isinstance(value, list):
            raise OptionError(f"`{self.name}` is a list of {len(value)} values; it must be {self._wanted()}.")
        else:
            read = self._one(value)
        self.check(read)
        return read

    def check(self, value: Any) -> None:
        """
        Raises:
            `OptionError`: a value of the right type is out of the range, or not one of the choices.
        """
        if self.allowed is not None:
            try:
                self.allowed.check(self.name, value)
            except ValueError as error:
                raise OptionError(str(error)) from None
        for one in value if isinstance(value, list | tuple) else [value]:
            if self.choices and one is not None and one not in self.choices:
                raise OptionError(f'`{self.name}` is "{without_secrets(str(one))}"; it must be {self._wanted()}.')

    def _items(self, value: Any) -> list:
        """The values of a list. Numbers may have commas between them; a single value is a list of one."""
        items = list(value) if isinstance(value, list | tuple) else [value]
        if self.kind not in (int, float) or self.may_be_mapping:
            return items
        return [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]

    def _one(self, value: Any) -> Any:
        if self.kind is Any:
            return value
        if self.kind is dict:
            return value if isinstance(value, dict) else self._entry(str(value))
        if isinstance(value, str) and self.may_be_mapping and value.startswith("{"):
            value = parse_mapping(value, f"`{self.name}`")
        if isinstance(value, dict) and self.may_be_mapping:
            return value
        if isinstance(value, bool) and str(value).lower() in self.choices:  # a word that YAML reads as a boolean
            return str(value).lower()
        try:
            return _converted(value, self.kind)
        except ValueError:
            shown = "a mapping" if isinstance(value, dict) else without_secrets(str(value))
            quotes = ", in quotes" if self.kind is str else ""
            raise OptionError(f"`{self.name}` is {shown}; it must be {self._wanted()}{quotes}.") from None

    def _entry(self, text: str) -> dict[str, Any]:
        try:
            return parse_mapping(text, "")
        except ValueError:  # without its message, which is about a file
            raise OptionError(
                f"`{self.name}` has an entry {without_secrets(text)!r}, which is not a mapping with different names;"
                " each must be a mapping, and on a command line a separate word, such as"
                f" --{self.name} '{{name: small}}' '{{name: large}}'."
            ) from None

    def _mapping(self, value: Any) -> dict[str, Any]:
        """A mapping from words NAME=VALUE whose values are YAML."""
        if isinstance(value, dict):
            return value
        words, pairs = value if isinstance(value, list) else [value], {}
        for word in words:
            name, equals, text = str(word).partition("=")
            if not name or not equals:
                raise OptionError(f"`{self.name}` has {without_secrets(str(word))!r}, which must be NAME=VALUE.")
            if name in pairs:
                raise OptionError(f"`{self.name}` has {name} twice; {name} is given twice.")
            pairs[name] = parse_value(text, f"`{self.name}`")
        return pairs

    def _wanted(self) -> str:
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        return WANTED.get(self.kind, "a mapping")

    def full_help(self) -> str:
        """The help with range and default."""
        text = [self.help]
        if self.allowed is not None:
            text.append(f"{'Each' if self.is_list else 'It is'} {self.allowed}.")
        if self.default not in (REQUIRED, None, False, "") and self.default not in ([], (), {}):
            shown = self.default if not isinstance(self.default, list | tuple) else " ".join(map(str, self.default))
            text.append(f"(default: {shown})")
        return " ".join(filter(None, text))


def argument(default: Any, help: str, allowed: Range | tuple[str, ...] | None = None, **more: Any) -> Any:
    """
    A field of a dataclass of options.

    Args:
        default: `REQUIRED` if there is none; a list or mapping is copied for every instance.
        allowed: the range of a number, or of each number in a list; or the allowed words of a text.
        more: `needs`, as in `Option`; or `repr`, `False` for a secret.
    """
    metadata = {"help": help} | {name: more.pop(name) for name in ("needs",) if name in more}
    if isinstance(allowed, Range):
        metadata["range"] = allowed
    elif allowed:
        metadata["choices"] = allowed
    if default is REQUIRED:
        return field(metadata=metadata, **more)
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata, **more)
    return field(default=default, metadata=metadata, **more)


def options_of(described: type | Callable) -> dict[str, Option]:
    """
    The options that a dataclass or the signature of a function declares, by name.

    The help of a field comes from its `argument` or from the docstring; the help of a keyword comes from the
    docstring. A range, or a tuple of choices, may be in an annotation: `Annotated[int, AT_LEAST_ONE]`. Arguments that
    are not keyword-only may be given by their position.

    Args:
        described: a function, a dataclass, or a configuration of transformers. Of a configuration, only the fields
            that it declares itself are taken, without sub-configurations and `downstream_fields`.
    """
    texts = described_arguments(described.__doc__ or "")
    if not isinstance(described, type):
        hints = get_type_hints(described, include_extras=True)
        found = {}
        for name, parameter in inspect.signature(described).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            by_place = parameter.kind is not parameter.KEYWORD_ONLY
            about = {"help": texts.get(name, ""), "default": parameter.default, "is_positional": by_place}
            found[name] = Option(name, **about | _facts_of(hints.get(name, str)))
        return found
    found = {}
    # Without the values of recipes in brackets that docstrings of configurations have.
    texts = {name: re.sub(r" \[[^\]]*\]", "", text) for name, text in texts.items()}
    for entry in _fields(described):
        default = REQUIRED if entry.default is MISSING else entry.default
        if entry.default_factory is not MISSING:
            default = entry.default_factory()
        about = {
            "help": entry.metadata.get("help") or texts.get(entry.name, ""),
            "default": default,
        }
        about |= {"allowed": entry.metadata.get("range"), "choices": entry.metadata.get("choices", ())}
        about |= {"needs": entry.metadata.get("needs", {}), "is_secret": not entry.repr}
        found[entry.name] = Option(entry.name, **about | _facts_of(entry.type))
    return found


def values_for(function: Callable, values: Any) -> dict[str, Any]:
    """The attributes of `values` that a function or class has as parameters of the same names."""
    return {name: getattr(values, name) for name in inspect.signature(function).parameters if hasattr(values, name)}


def keyword_options(
    function: Callable, *, without: Iterable[str] = (), group: tuple[str, str] | None = None
) -> dict[str, Option]:
    """`options_of` only the keywords of a function, without the given names, as a group of the help."""
    return {
        name: replace(option, group=group)
        for name, option in options_of(function).items()
        if not (option.is_positional and option.default is REQUIRED) and name not in without
    }


def _fields(kind: type) -> list[dataclasses.Field]:
    left_out = {*getattr(kind, "sub_configs", ()), *getattr(kind, "downstream_fields", ())}
    if hasattr(kind, "sub_configs"):  # a configuration also has fields of transformers
        left_out |= {entry.name for entry in dataclasses.fields(kind)} - kind.__annotations__.keys()
    return [entry for entry in dataclasses.fields(kind) if entry.name not in left_out]


def _facts_of(annotation: Any) -> dict[str, Any]:
    """The facts about an option that its type gives."""
    facts: dict[str, Any] = {}
    if get_origin(annotation) is Annotated:
        annotation, *notes = get_args(annotation)
        facts |= {"allowed" if isinstance(note, Range) else "choices": note for note in notes}
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if types.NoneType in parts:
        facts["is_optional"] = True
    parts = [part for part in parts if part is not types.NoneType]
    mappings = [part for part in parts if (get_origin(part) or part) in (dict, Mapping)]
    if mappings and len(parts) > 1:
        facts["may_be_mapping"] = True
        parts = [part for part in parts if part not in mappings]
    # `float | int` is a float; of other unions, such as `str | Path`, the first type counts.
    kind = float if float in parts else parts[0]
    origin = get_origin(kind) or kind
    if origin is Literal:
        return facts | {"choices": get_args(kind), "kind": type(get_args(kind)[0])}
    if origin in LISTS:
        items = get_args(kind) or (Any,)
        fixed = origin is tuple and Ellipsis not in items
        facts |= {"is_list": True, "length": len(items) if fixed else None}
        return {**_facts_of(items[0]), **facts}
    return facts | {"kind": dict if origin is Mapping else origin}


def described_arguments(docstring: str) -> dict[str, str]:
    """The text of each argument in the `Args` section of a docstring, on one line."""
    section = re.search(r"^ +Args:\n(.*?)(?:\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    texts = {}
    for entry in re.split(r"\n {8}(?=\w)", section[1].strip()) if section else ():
        names, _, text = re.sub(r"^(\w+) \([^\n]*?\): ", r"\1: ", entry).partition(": ")
        for name in names.split(", "):
            texts[name.strip()] = " ".join(text.replace("`", "").split())
    return texts


def _converted(value: Any, kind: type) -> Any:
    """The value as `kind`; `ValueError` if it is not of that kind. YAML reads 1e-3 as a text."""
    if kind is str:
        if not isinstance(value, str):
            raise ValueError
        return value
    if kind is bool:
        word = str(value).lower()
        if word not in YES + NO:
            raise ValueError
        return word in YES
    if isinstance(value, bool | dict):
        raise ValueError
    return kind(str(value))


def refuse_missing(options: Mapping[str, Option], given: Iterable[str]) -> None:
    """`OptionError` if a required option is missing."""
    missing = [f"`--{name}`" for name, option in options.items() if option.default is REQUIRED and name not in given]
    if missing:
        listed = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise OptionError(f"{listed} must be given.")


def read_mapping(options: Mapping[str, Option], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """
    Convert the values of a recipe to the types of the options.

    Args:
        source: what messages call the recipe, such as its path.

    Raises:
        `OptionError`: an unknown name, or a value that `Option.read` refuses.
    """
    for name in values:
        if name not in options:
            near = did_you_mean(str(name), options) or " --help lists the names that there are."
            raise OptionError(f"{source} has the unknown key `{without_secrets(str(name))}`.{near}")
    return {name: options[name].read(value) for name, value in values.items()}


def check_options(instance: Any) -> None:
    """
    Check the values of a dataclass of options, in its `__post_init__`.

    Raises:
        `ValueError`: a field is out of its range, or not one of its choices.
    """
    for option in options_of(type(instance)).values():
        option.check(getattr(instance, option.name))


def refuse_without_effect(
    options: Mapping[str, Option], values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """
    Raises:
        `OptionError`: an option whose `needs` are not met has a value that is neither its default nor among
            `defaults`. The value would be ignored.
    """
    for name, option in options.items():
        value = values[name]
        if value == option.default or (name in defaults and value == defaults[name]):
            continue
        for other, needed in option.needs.items():
            actual = bool(values[other]) if isinstance(needed, bool) else values[other]
            if actual == needed:
                continue
            said = f"`{name}` is set" if option.is_secret else f"`{name}` is {without_secrets(value)}"
            state = f"without `{other}`"
            if needed is not True:
                state = f"with `{other}`" + ("" if needed is False else f" {values[other]}")
            change = f", or set `{other}`" + ("" if isinstance(needed, bool) else f" to {needed}")
            advice = "leave it out" + ("" if needed is False else change)
            raise OptionError(f"{said}, but has no effect {state}; {advice}.")


def given(**options: Any) -> dict[str, Any]:
    """Only the options that were given, so that defaults are declared in one place."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: Iterable[str], reason: str) -> None:
    """`ValueError` if there are options, by name, that would be ignored."""
    options = sorted(options)
    if options:
        raise ValueError(f"{reason}; leave {', '.join(f'`--{name}`' for name in options)} out.")
