"""
The `dinov2-hf` command. Each subcommand parses its arguments, calls one room of the package and prints what came out.

A user's mistake is one sentence on standard error and exit status 1.
"""

import argparse
import errno
import sys

from ..conversion.export_report import ExportCheckError
from .convert import convert
from .curate import curate
from .evaluate import evaluate
from .export import export
from .features import features
from .push import push
from .visualize import visualize


COMMANDS = {
    "convert": convert, "export": export, "push": push, "features": features, "curate": curate, "evaluate": evaluate,
    "visualize": visualize,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dinov2-hf", description="DINOv2 for Hugging Face transformers.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, add_arguments in COMMANDS.items():
        summary = add_arguments.__doc__
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=add_arguments(command))
    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    try:
        run(**options)
    except (ValueError, ImportError, ExportCheckError) as error:  # ImportError: an extra that is not installed
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        sys.exit(f"error: {error}")
