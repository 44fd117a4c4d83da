"""Translates errors of the package, which name Python arguments, into the words of the command line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


def in_users_words(message: str, flags: dict[str, str]) -> str:
    """
    A message in one line, with flags instead of arguments: `--batch_size 0` for `batch_size=0`, `--overwrite` for
    `overwrite=True`, and `--num_layers` for a bare `num_layers`.

    Args:
        message: message of an error.
        flags: flags by the names of the arguments.
    """
    message = " ".join(message.split())
    if not flags:
        return message
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    value = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|[\w+/-]+(?:\.\w+)*"
    free = r"(?<![\w.`'\"/=-])"

    def with_value(match: re.Match) -> str:
        words = re.sub(r"[\[\]()'\",]", "", match[2])
        return flags[match[1]] if words in ("True", "None", "") else f"{flags[match[1]]} {words}"

    message = re.sub(rf"`({names})`", lambda match: f"`{flags[match[1]]}`", message)
    message = re.sub(rf"{free}({names})=({value})", with_value, message)
    # A plain word, such as `data`, is an argument only if a sentence begins with it.
    message = re.sub(rf"^({names})(?= is | has | holds )", lambda match: flags[match[1]], message)
    with_underscore = "|".join(name for name in names.split("|") if "_" in name)
    if with_underscore:
        bare = rf"{free}({with_underscore})(?![\w/(`'\"=-]|\.\w)"
        message = re.sub(bare, lambda match: flags[match[1]], message)
    return message


@contextmanager
def flags_for(**flags: str) -> Iterator[None]:
    """Make errors name keywords of a function by flags with other names; `main` handles flags with the same name.

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
