"""Options of the evaluation protocols, read off the signatures of their functions.

A keyword of `evaluate_knn` that not all protocols share, such as `temperature`, is the option `--knn_temperature`;
type and default are those of the signature, and the help is the text of the docstring.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from .options import refuse
from .user_words import in_users_words


# What the command gives to every protocol that takes it.
SHARED = ("label_column", "output_dir")


def own_options(function: Callable) -> dict[str, inspect.Parameter]:
    """The keywords of a protocol that are not shared."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in SHARED
    }


def option_name(protocol: str, keyword: str) -> str:
    """`knn_temperature` for `temperature`, and `depth_scale` for `depth_scale`."""
    return keyword if keyword.startswith(f"{protocol}_") else f"{protocol}_{keyword}"


def add_protocol_options(parser: argparse.ArgumentParser, functions: Mapping[str, Callable]) -> None:
    """A group of options `--<protocol>_<keyword>` for each protocol; options that are not given are None."""
    for protocol, function in functions.items():
        group = parser.add_argument_group(protocol, purpose(protocol, function))
        explanations = argument_lines(function.__doc__)
        for name, parameter in own_options(function).items():
            default = parameter.default
            # argparse would take a percent sign for a format.
            explanation = explanations.get(name, "").replace("%", "%%")
            if default is not None and default != ():
                shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
                explanation += f" (default: {shown})"
            option = f"--{option_name(protocol, name)}"
            group.add_argument(option, default=None, help=explanation.strip(), **argument_type(parameter.annotation))


def chosen_options(
    functions: Mapping[str, Callable], protocols: list[str], given: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The given options of each chosen protocol, by their names as keywords.

    Raises:
        ValueError: an option belongs to a protocol that was not chosen, or a seed is out of range.
    """
    chosen, ignored = {name: {} for name in protocols}, {}
    for protocol, function in functions.items():
        for name in own_options(function):
            value = given.get(option_name(protocol, name))
            if value is None:
                continue
            if name == "seed" and not 0 <= value < 2**63:
                raise ValueError(f"`--{option_name(protocol, name)}` is {value}, but must be from 0 to {2**63 - 1}.")
            if protocol in chosen:
                chosen[protocol][name] = value
            else:
                ignored[option_name(protocol, name)] = value
    refuse(ignored, f"`--protocol` is {','.join(protocols)}")
    return chosen


def options_in_force(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a protocol that may change what it finds: those given, and the defaults of the others."""
    return {
        name: given.get(name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "output_dir"
    }


def purpose(protocol: str, function: Callable) -> str:
    """What a protocol does, in a sentence."""
    return as_typed(protocol, function, function.__doc__.splitlines()[0])


def as_typed(protocol: str, function: Callable, sentence: str) -> str:
    """What a protocol says of its arguments, with the options that they are: `--train_data` for `train_dataset`."""
    own = {name: f"--{option_name(protocol, name)}" for name in own_options(function)}
    return in_users_words(sentence, {**own, "train_dataset": "--train_data", "eval_dataset": "--eval_data"})


def in_words_of_the_command(protocol: str, function: Callable) -> AbstractContextManager[None]:
    """Mistakes that a protocol finds name its own options as they are typed: `--knn_ks` for `ks`."""
    return flags_for(**{name: option_name(protocol, name) for name in own_options(function)})


@contextmanager
def flags_for(**flags: str) -> Iterator[None]:
    """Mistakes name keywords of a function by flags of other names; those of the same name, `main` knows.

    Args:
        flags: the names of the flags, by the keywords.
    """
    flags = {name: f"--{flag}" for name, flag in flags.items()}
    try:
        yield
    except ImportError as error:
        raise ImportError(in_users_words(str(error), flags)) from error
    except ValueError as error:
        raise ValueError(in_users_words(str(error), flags)) from error


def argument_type(annotation: Any) -> dict[str, Any]:
    """What `add_argument` needs for a keyword of this type."""
    alternatives = [kind for kind in get_args(annotation) if kind is not NoneType]
    if NoneType in get_args(annotation):
        if len(alternatives) > 1:
            raise TypeError(f"{annotation} is no type of an option: one type, or that and None, is needed.")
        return argument_type(alternatives[0])
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(annotation) is Literal:
        return {"choices": alternatives}
    if get_origin(annotation) is None:
        return {"type": annotation, "metavar": annotation.__name__.upper()}
    return {"nargs": "+", **argument_type(alternatives[0])}  # Sequence[int]


def argument_lines(docstring: str) -> dict[str, str]:
    """The text of each argument in the `Args` section of a docstring, on one line."""
    section = re.search(r"^ +Args:\n(.*?)(?:\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    texts = {}
    for entry in re.split(r"\n {8}(?=\w)", section[1].strip()) if section else ():
        names, _, text = entry.partition(": ")
        for name in names.split(", "):
            texts[name.strip()] = " ".join(text.split())
    return texts
