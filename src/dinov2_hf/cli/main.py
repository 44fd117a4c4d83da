"""
The `dinov2-hf` command. Each subcommand parses its arguments, calls one room of the package and prints what came out.

A user's mistake is one sentence on standard error and exit status 1 (2, where the command line cannot be read). An
interruption by Ctrl-C is one line and exit status 130. Anything else is a fault of the package, with its traceback.
"""

import argparse
import errno
import os
import sys
import traceback
from typing import NoReturn

from huggingface_hub.errors import HTTPError  # of the client that it uses, which depends on its version

from ..conversion.exports.report import ExportCheckError
from ..public_names import without_secrets
from .convert import convert
from .curate import curate
from .distill import distill
from .evaluate import evaluate
from .export import export
from .features import features
from .options import PIXEL_LIMIT
from .pretrain import pretrain
from .push import push
from .user_words import flags_of, in_users_words
from .visualize import visualize


COMMANDS = {
    "convert": convert, "export": export, "push": push, "features": features, "curate": curate, "evaluate": evaluate,
    "visualize": visualize,
}  # fmt: skip
# These read their words themselves, as the scripts that they are.
SCRIPTS = {"pretrain": pretrain, "distill": distill}
# Of files and folders that a user named: not there, not readable, not writable, of another kind; and full disks.
MISTAKES = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
INTERRUPTED = 128 + 2  # as of a process that SIGINT ended


class Parser(argparse.ArgumentParser):
    """One line for a mistake, in place of the usage, which is longer than a screen."""

    def error(self, message: str) -> NoReturn:
        problem, found, words = message.partition("unrecognized arguments: ")
        if found:  # after a mistyped --token stands a token
            words = words.split()
            flags = [word.partition("=")[0] for word in words if word.startswith("-")]
            others = len(words) - len(flags)
            message = f"{problem}{found}{', '.join(flags) or f'{others} words'} (values are not repeated here)"
        self.exit(2, f"error: {without_secrets(message)}; `{self.prog} --help` lists the options.\n")


def put_in_force(max_image_pixels: int | None) -> None:
    """The limit of `--max_image_pixels`, for this process and those that it starts."""
    if max_image_pixels is not None:
        from ..data import set_max_image_pixels

        set_max_image_pixels(max_image_pixels)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in SCRIPTS:
        return SCRIPTS[arguments[0]](arguments[1:])
    parser = Parser(prog="dinov2-hf", description="DINOv2 for Hugging Face transformers.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, script in SCRIPTS.items():
        commands.add_parser(name, help=script.__doc__)
    for name, add_arguments in COMMANDS.items():
        summary = add_arguments.__doc__
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=add_arguments(command), parser=command)
    options = vars(parser.parse_args(arguments))
    run, command = options.pop("run"), options.pop("parser")
    flags = flags_of(command)
    try:
        put_in_force(options.pop(PIXEL_LIMIT, None))
        run(**options)
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        traceback.clear_frames(interruption.__traceback__)  # ends progress bars, which would write after this line
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
    except (ValueError, ImportError, ExportCheckError) as error:  # ImportError: an extra that is not installed
        sys.exit(f"error: {without_secrets(in_users_words(str(error), flags))}")
    except (OSError, HTTPError) as error:
        # Without a number it is a library's sentence on something that it cannot read, or find on the Hub.
        number = getattr(error, "errno", None)
        if number is not None and number not in MISTAKES and not isinstance(error, ConnectionError | TimeoutError):
            raise
        has_name = getattr(error, "filename", None) is not None and error.strerror
        words = f"{error.filename}: {error.strerror}" if has_name else str(error)
        sys.exit(f"error: {without_secrets(in_users_words(words, flags))}")
