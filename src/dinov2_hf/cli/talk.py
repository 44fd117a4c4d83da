"""The amount and place of a command's output: `--json`, `-q` and `-v`."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..options import OptionError


# Progress bars of libraries, which are made for a terminal; transformers uses the setting of the Hub.
NO_BARS_OF_OTHERS = ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")
NO_BARS = "TQDM_DISABLE"  # ours
MUCH = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")


@dataclass(frozen=True)
class Talk:
    """
    Args:
        json: results are printed as JSON, and texts for people go to standard error.
        quiet: only results, warnings and errors.
        verbose: also logs of libraries, and the traceback of an error.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Direct all prints to their place. The verbosity of libraries is set before they are imported."""
        with contextlib.ExitStack() as held:
            if self.quiet:
                held.enter_context(_environment({NO_BARS: "1"}))
            if self.quiet or not sys.stderr.isatty():
                held.enter_context(_environment(dict.fromkeys(NO_BARS_OF_OTHERS, "1")))
            if self.verbose:
                held.enter_context(_environment(dict.fromkeys(MUCH, "info")))
                logging.basicConfig(level=logging.INFO)
            if self.quiet:
                nothing = held.enter_context(open(os.devnull, "w"))
                held.enter_context(contextlib.redirect_stdout(nothing))
            elif self.json:
                held.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def add_help(parser: argparse.ArgumentParser, *, has_results: bool) -> None:
    """Add the options of `split_talk` to `--help`."""
    group = parser.add_argument_group("how much is said")
    shown = {"action": "store_true", "default": argparse.SUPPRESS}
    if has_results:
        group.add_argument("--json", **shown, help="Print the results as JSON, and all else on standard error.")
    group.add_argument("-q", "--quiet", **shown, help="Print only mistakes and warnings.")
    group.add_argument("-v", "--verbose", **shown, help="Show what libraries log, and the traceback of a mistake.")


def split_talk(words: Sequence[str], *, has_results: bool) -> tuple[list[str], Talk]:
    """The words without the options of this module, and the values of these."""
    spelled = {"-q": "quiet", "--quiet": "quiet", "-v": "verbose", "--verbose": "verbose"}
    spelled |= {"--json": "json"} if has_results else {}
    said = {spelled[word]: True for word in words if word in spelled}
    if said.keys() >= {"quiet", "verbose"}:
        raise OptionError("`--quiet` and `--verbose` are given; leave one of them out.")
    return [word for word in words if word not in spelled], Talk(**said)
