"""A run of `examples/pretrain.py` in a process of its own, whose metrics are read while it goes on."""

import json
import runpy
import time
from collections.abc import Iterator
from pathlib import Path

from .processes import context_for, kill_tree


ROOT = Path(__file__).parents[3]


def watch_run(flags: list[str], output_dir: Path, seconds: float, device: str) -> Iterator[dict]:
    """
    The lines of `metrics.jsonl` as they appear, until the run ends, `seconds` are over, or nobody asks for more. A run
    that goes on then is killed.

    Raises:
        RuntimeError: it ended by itself and not well; what it said is in the log.
    """
    end = time.time() + seconds
    flags = [*flags, "--output_dir", str(output_dir)]
    process = context_for(device).Process(target=pretrain, args=(flags,))
    process.start()
    seen = 0
    try:
        while time.time() < end:
            process.join(timeout=0.2)
            ended = not process.is_alive()
            rows = read_rows(output_dir / "metrics.jsonl")
            yield from rows[seen:]
            seen = len(rows)
            if ended:
                if process.exitcode:
                    raise RuntimeError(f"the run ended with exit code {process.exitcode}; its words are in the log.")
                return
    finally:
        kill_tree(process)


def pretrain(flags: list[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "pretrain.py"), run_name="pretrain")["main"](flags)


def read_rows(path: Path) -> list[dict]:
    """Whole lines only: the last may be half written."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
