"""Finds the checkpoint folders of a run, and reads the state of the run from them."""

import json
import re
from pathlib import Path


CHECKPOINTS = "checkpoints"  # of the output folder of a run
STATE_FILE = "run_state.json"
LATEST = "latest"  # stands for the newest checkpoint
CHECKPOINT_NAME = r"step_\d+"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"step_{step:07d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [
        path for path in folder.iterdir() if re.fullmatch(CHECKPOINT_NAME, path.name) and (path / STATE_FILE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def read_state(checkpoint: Path) -> dict:
    """The `state` that `CheckpointSaver.save` was given; `ValueError` if the file contains something else."""
    path = checkpoint / STATE_FILE
    try:
        state = json.loads(path.read_text())
    except (ValueError, RecursionError):
        state = None
    if not (isinstance(state, dict) and isinstance(state.get("step"), int) and state["step"] >= 0):
        raise ValueError(f"{path} does not hold the state of a run; continue from another checkpoint.")
    return state
