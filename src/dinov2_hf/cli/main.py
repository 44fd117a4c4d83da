"""
Calling a subcommand: a function of `cli` whose signature and docstring are its options and its help.

A user's mistake is one sentence on standard error and exit status 1 (2, where the command line cannot be read).
Anything else is a fault of the package, with its traceback.
"""

import errno
import inspect
import sys
from collections.abc import Callable
from importlib import import_module

from huggingface_hub.errors import HTTPError  # of the client that it uses, which depends on its version

from dinov2_hf_command import main

from ..command_lines import build_parser, read_words
from ..conversion.exports.formats import ExportCheckError
from ..options import OptionError, options_of, refuse_missing
from ..public_names import without_secrets
from .user_words import in_users_words


__all__ = ["call", "main"]
# Of files and folders that a user named: not there, not readable, not writable, of another kind; and full disks.
MISTAKES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def call(name: str, words: list[str]) -> None:
    """
    Run the subcommand `name`, the function of that name in the file of that name.

    A function of `*words` reads them itself. `more_options(words)` in its file gives options beside those of the
    signature, by name, which depend on what the words name; the function gets those that are given as keywords.
    """
    flags: dict[str, str] = {}
    try:
        module = import_module(f".{name}", __package__)
        function = getattr(module, name)
        if takes_words(function):
            sys.argv[0] = f"dinov2-hf {name}"  # what its help calls it
            function(*words)
            return
        options = options_of(function)
        if hasattr(module, "more_options"):
            options |= module.more_options(words)
        flags |= {option: f"--{option}" for option in options if not options[option].is_positional}
        parser = build_parser(options, f"dinov2-hf {name}", function.__doc__.split("\n\n")[0])
        given = read_words(options, words, parser)
        refuse_missing(options, given)
        function(**given)
    except BrokenPipeError:
        raise  # no mistake: `dinov2_hf_command` ends on it
    except OptionError as error:
        sentence = in_users_words(str(error), flags)
        print(f"error: {sentence} `dinov2-hf {name} --help` lists the options.", file=sys.stderr)
        sys.exit(2)
    except (ValueError, ImportError, ExportCheckError) as error:  # ImportError: an extra that is not installed
        sys.exit(f"error: {without_secrets(in_users_words(str(error), flags))}")
    except (OSError, HTTPError) as error:
        # Without a number it is a library's sentence on something that it cannot read, or find on the Hub.
        number = getattr(error, "errno", None)
        if number is not None and number not in MISTAKES and not isinstance(error, ConnectionError | TimeoutError):
            raise
        has_name = getattr(error, "filename", None) is not None and error.strerror
        sentence = f"{error.filename}: {error.strerror}" if has_name else str(error)
        sys.exit(f"error: {without_secrets(in_users_words(sentence, flags))}")


def takes_words(function: Callable) -> bool:
    """Whether a subcommand reads its words itself."""
    return any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(function).parameters.values())
