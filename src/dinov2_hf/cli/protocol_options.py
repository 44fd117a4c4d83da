"""Options of the evaluation protocols, read off the signatures of their functions.

A keyword of `evaluate_knn` that not all protocols share, such as `temperature`, is the option `--knn_temperature`;
type and default are those of the signature, and the help is the text of the docstring.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from ..options import Option, keyword_options, refuse
from .user_words import in_users_words


# What the command gives to every protocol that takes it.
SHARED = ("label_column", "output_dir")


def own_options(function: Callable) -> dict[str, Option]:
    """The keywords of a protocol that are not shared."""
    return keyword_options(function, without=SHARED)


def option_name(protocol: str, keyword: str) -> str:
    """`knn_temperature` for `temperature`, and `depth_scale` for `depth_scale`."""
    return keyword if keyword.startswith(f"{protocol}_") else f"{protocol}_{keyword}"


def options_of_protocols(functions: Mapping[str, Callable]) -> dict[str, Option]:
    """Options `--<protocol>_<keyword>`, in a group of the help for each protocol."""
    return {
        option_name(protocol, keyword): replace(
            option,
            name=option_name(protocol, keyword),
            help=as_typed(protocol, function, option.help),
            group=(protocol, purpose(protocol, function)),
        )
        for protocol, function in functions.items()
        for keyword, option in own_options(function).items()
    }


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
