"""`dinov2-hf replay`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any


def replay(step: Path) -> dict[str, Any] | None:
    """Repeat a training step that was not finite, and find out where its numbers come from.

    Args:
        step: nonfinite_steps/step_N of a run with --save_nonfinite_batch. A step of several processes is the same only
            where as many replay it, by `accelerate launch`.
    """
    from ..runs.replay import replay_step

    found = replay_step(step)
    if found is None:  # only the first of several processes has it
        return None
    print(found)
    return asdict(found)
