"""
Saves steps that were not finite, so that each can be replayed alone: `nonfinite_steps/step_N/` of a run.

In such a folder `weights.safetensors` contains all weights and buffers from before the step, `process_K.safetensors`
the batch of every forward pass of one process with its loss and initial random states, `step.json` the further
arguments of the objective, and `recipe.yaml` the recipe. Everything is tensors and text: nothing is executed when it
is read.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ...output_folders import check_kind
from ..checkpointing.checkpoint_folders import CHECKPOINT_NAME, checkpoint_name
from ..processes.distributed import on_main_for_all
from ..processes.sharded_weights import whole_weights
from ..processes.shared_folders import replace_folder
from ..run_stopped import RunStopped


logger = logging.getLogger(__name__)
FOLDER, KIND = "nonfinite_steps", "nonfinite_step"  # of the output folder of a run, and of its marker
WEIGHTS, STEP, RECIPE = "weights.safetensors", "step.json", "recipe.yaml"


@dataclass(frozen=True)
class KeptPass:
    """
    One forward pass of one process.

    Args:
        batch: tensors by name, as the objective takes them.
        random_states: random states of torch before the pass, by the type of the device.
        loss: its loss, a float32 scalar.
        row_ids: row ids of its images.
    """

    batch: dict[str, torch.Tensor]
    random_states: dict[str, torch.Tensor]
    loss: torch.Tensor | None = None
    row_ids: list[str] | None = None

    def restore_random_states(self) -> None:
        """Restore the random states of the pass, on every kind of device of this machine."""
        for kind, state in self.random_states.items():
            if kind == "cpu":
                torch.set_rng_state(state)
            elif torch.get_device_module(kind).is_available():
                torch.get_device_module(kind).set_rng_state(state)


class NonFiniteBatches:
    """
    Notes the inputs of each step, and writes them if the step was not finite. Call `write` before anything changes the
    weights: after the step that was left out, and before the next one.

    Args:
        module: the module without wrappers.
        folder: folder of all such steps.
        most: how many are saved. The first ones are saved, because later ones are often their consequence.
        facts: facts about the run for `step.json`, as JSON values.
        recipe: recipe of the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: torch.nn.Module,
        folder: Path,
        *,
        most: int,
        facts: Mapping[str, Any],
        recipe: Mapping[str, Any],
    ):
        self.accelerator, self.module, self.folder, self.most = accelerator, module, folder, most
        self.facts, self.recipe = facts, recipe
        self.begin()

    def begin(self) -> None:
        """Before the first forward pass of a step."""
        self.passes: list[KeptPass] = []

    def see(self, batch: Mapping[str, torch.Tensor], told: Mapping[str, Any]) -> None:
        """
        Note a batch and the random states, right before the forward pass.

        Args:
            told: the arguments of the objective other than the batch, as JSON values; the same for all passes of a
                step.
        """
        kind = self.accelerator.device.type
        states = {"cpu": torch.get_rng_state()}
        if kind != "cpu":
            states[kind] = torch.get_device_module(kind).get_rng_state(self.accelerator.device)
        self.passes.append(KeptPass(dict(batch), states))
        self.told = dict(told)

    def write(self, step: int, losses: list[torch.Tensor], row_ids: list[list[str]]) -> None:
        """
        Write the step, unless there are enough. Every process must call it. If a step cannot be written, this is only
        a warning, because the run does not need it.
        """
        if on_main_for_all(self.accelerator, lambda: len(kept_steps(self.folder))) >= self.most:
            return
        place = self.folder / checkpoint_name(step)
        weights = whole_weights(self.module, keep=self.accelerator.is_main_process)

        def write_files(partial: Path) -> None:
            if self.accelerator.is_main_process:
                save_file(_owned(weights), partial / WEIGHTS)
                (partial / RECIPE).write_text(yaml.safe_dump(dict(self.recipe), sort_keys=False))
                scaler = self.accelerator.scaler
                said = {
                    "step": step, **self.facts, "device": self.accelerator.device.type,
                    "num_processes": self.accelerator.num_processes,
                    "loss_scale": None if scaler is None else scaler.get_scale(), "told": self.told,
                }  # fmt: skip
                (partial / STEP).write_text(json.dumps(said, indent=1) + "\n")
            tensors = {}
            for number, (kept, loss) in enumerate(zip(self.passes, losses, strict=True)):
                tensors |= {f"{number}.batch.{name}": value for name, value in kept.batch.items()}
                tensors |= {f"{number}.random_state.{kind}": state for kind, state in kept.random_states.items()}
                tensors[f"{number}.loss"] = loss
            path = partial / f"process_{self.accelerator.process_index}.safetensors"
            save_file(_owned(tensors), path, {"row_ids": json.dumps(row_ids)})

        try:
            replace_folder(
                self.accelerator, place, write_files, kind=KIND, check=lambda there: check_kind(there, KIND)
            )
        except RunStopped as error:  # on all processes
            logger.warning("step %d is not kept: %s", step, error)
            return
        logger.warning("step %d is kept in %s; `dinov2-hf replay` takes it again.", step, place)


def _owned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors in the form that a file needs: each with its own memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def kept_steps(folder: Path) -> list[Path]:
    """The steps in `nonfinite_steps`, in order."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(CHECKPOINT_NAME, path.name))


def read_step(folder: Path) -> dict[str, Any]:
    """
    Read `step.json` of a saved step.

    Raises:
        ValueError: `folder` is not a saved step; the message names the steps that it contains.
    """
    path = folder / STEP
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        pass
    found = [*kept_steps(folder), *kept_steps(folder / FOLDER)]
    names = f"; name one of {', '.join(map(str, found))}" if found else ""
    raise ValueError(
        f"{folder} is not a saved step: it has no {STEP} that can be read{names}. A run with --save_nonfinite_batch"
        f" saves such steps in {FOLDER}/ of its output folder."
    )


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights and buffers from before the step, in the memory of the host; `ValueError` if they are damaged."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}).") from None


def read_passes(folder: Path, process: int) -> list[KeptPass]:
    """The forward passes of one process, in the memory of the host; `ValueError` if their file is damaged."""
    path = folder / f"process_{process}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            row_ids = json.loads(file.metadata()["row_ids"])
            # Copies: a tensor in a mapped file starts at any byte, and sums on a CPU round by where memory starts.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from None

    def below(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return [
        KeptPass(below(f"{number}.batch."), below(f"{number}.random_state."), tensors[f"{number}.loss"], ids)
        for number, ids in enumerate(row_ids)
    ]
