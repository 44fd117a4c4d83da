"""
Checks that the random states in a checkpoint, one file for each process, are complete and really restored.

Accelerate silently continues if it cannot read one. The run would then draw other random numbers.
"""

import logging
import pickle
from pathlib import Path

import torch
from accelerate.utils import load


logger = logging.getLogger(__name__)
NAMES = ("random_state", "numpy_random_seed", "torch_manual_seed")
CUDA_NAME = "torch_cuda_manual_seed"


def find_damage_of_random_states(checkpoint: Path, state: dict) -> str | None:
    """The missing part of the random states of all processes in the `state` of a run; `None` if nothing is missing."""
    for index in range(state.get("launch", {}).get("num_processes", 1)):
        path = _path(checkpoint, index)
        if not path.is_file():
            return f"its {path.name} is missing"
        try:
            states = load(path)  # by torch's unpickler for weights
        except (OSError, RuntimeError, ValueError, pickle.UnpicklingError):
            states = None
        if not isinstance(states, dict) or not all(name in states for name in NAMES):
            return f"its {path.name} holds no random states"
    return None


def check_restored(checkpoint: Path, process_index: int) -> None:
    """
    Check that this process continues with the random state that was saved for it. A new process has none. States of
    GPUs cannot be restored if the number of GPUs differs. Warnings say so.

    Raises:
        ValueError: the saved state was not restored.
    """
    path = _path(checkpoint, process_index)
    if not path.is_file():
        logger.warning(
            "%s has no random state of process %d, which starts with a fresh one.", checkpoint, process_index
        )
        return
    states = load(path)
    if not torch.equal(torch.get_rng_state(), states["torch_manual_seed"]):
        raise ValueError(f"{path} could not be put back as the random state; continue from another checkpoint.")
    if torch.cuda.is_available():
        saved, now = states.get(CUDA_NAME, []), torch.cuda.get_rng_state_all()
        if len(saved) != len(now) or not all(map(torch.equal, saved, now)):
            logger.warning(
                "%s was saved with %d GPUs where %d are seen now, so that random numbers on the GPU are other ones.",
                path, len(saved), len(now),
            )  # fmt: skip


def _path(checkpoint: Path, process_index: int) -> Path:
    return checkpoint / f"random_states_{process_index}.pkl"
