"""Progress of a loop: a bar on a terminal; elsewhere, such as in the log of a job, a line every half minute."""

import os
import sys
from typing import Any

from tqdm.auto import tqdm


SECONDS_BETWEEN_LINES = 30


class Progress(tqdm):
    """
    A `tqdm`, with the same arguments. Without a terminal, a loop of less than half a minute writes nothing, except
    with `delay=0`.

    TQDM_DISABLE, which tqdm reads and `-q` sets, silences it even if `disable` is false.
    """

    def __init__(self, *arguments: Any, disable: bool = False, **given: Any):
        if not sys.stderr.isatty():
            given |= {"file": _Lines(), "mininterval": SECONDS_BETWEEN_LINES, "miniters": 1}
            given.setdefault("delay", SECONDS_BETWEEN_LINES)
        is_silenced = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false")
        super().__init__(*arguments, disable=disable or is_silenced, **given)


class _Lines:
    """A file for a bar. Each new state of the bar becomes a new line, unless it equals the last one."""

    last = ""

    def write(self, text: str) -> None:
        text = text.strip()
        if text and text != self.last:
            self.last = text
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()
