"""
Steps whose loss or gradient is not finite: they are left out and listed, and too many in a row end the run.

A step that is left out changes neither weights nor optimizer nor teacher nor centres. Its images and its position in
the schedules are used up, so that a resumed run has the same steps. The device decides and does not wait for the host,
which counts and lists the step when it reads the result. `nonfinite_batches.py` saves such steps for a replay.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..monitoring.monitor import truncate_metrics
from ..run_stopped import RunStopped
from .nonfinite_batches import NonFiniteBatches


logger = logging.getLogger(__name__)
MAX_ROW_IDS_IN_LOG = 16


@dataclass
class StepPasses:
    """
    The forward passes of one step.

    Args:
        number: number of the step, from 1.
        losses: loss of each pass, on the device.
        row_ids: row ids of the images of each pass.
    """

    number: int
    losses: list[torch.Tensor] = field(default_factory=list)
    row_ids: list[list[str]] = field(default_factory=list)


class NonFiniteSteps:
    """
    For each step call `begin`, `add` for every forward pass, `found` for the votes of this process, and `leave_out`
    with the counts of all processes on the device. Call `settle` when the host has read these, possibly a step later.

    Args:
        module: the module without wrappers. Its buffers (centres change in the forward pass) are restored after a step
            that is left out.
        state: state of the run, saved with it. It contains `nonfinite_steps`, their total number, and
            `nonfinite_steps_in_a_row`.
        max_in_a_row: the largest number of steps left out in a row; 0 stops at the first.
        path: JSON lines, one for each such step: `step`, `losses` of the forward passes that were not finite (as text;
            none if only a gradient was not finite) and `row_ids` of the images.
        batches: saves such steps for a replay; then each step must be settled before the next one. `None` saves none.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: torch.nn.Module,
        state: dict,
        *,
        max_in_a_row: int,
        path: Path,
        batches: NonFiniteBatches | None = None,
    ):
        self.accelerator = accelerator
        self.batches = batches
        self.state = state
        self.max_in_a_row = max_in_a_row
        self.path = path
        self.buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        state.setdefault("nonfinite_steps", 0)
        state.setdefault("nonfinite_steps_in_a_row", 0)
        if accelerator.is_main_process:
            truncate_metrics(path, state["step"])

    def begin(self) -> None:
        """Before the first forward pass of a step."""
        self.buffers_before = [buffer.clone() for buffer in self.buffers]
        self.passes = StepPasses(self.state["step"] + 1)
        if self.batches is not None:
            self.batches.begin()

    def add(self, loss: torch.Tensor, row_ids: list[str]) -> None:
        """Note the loss and the images of one forward pass."""
        self.passes.losses.append(loss.detach())
        self.passes.row_ids.append(row_ids)

    def found(self, norms: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether a loss of this process and whether a gradient (norms after the last backward pass) is not finite."""
        norms_on_device = [torch.as_tensor(norm, device=self.accelerator.device) for norm in norms.values()]
        return ~torch.stack(self.passes.losses).isfinite().all(), ~torch.stack(norms_on_device).isfinite().all()

    def leave_out(self, num_losses: torch.Tensor, num_gradients: torch.Tensor) -> torch.Tensor:
        """
        Decide on the device whether this step is left out, and if so restore the buffers there.

        Args:
            num_losses, num_gradients: numbers of processes on which a loss or a gradient was not finite.

        Returns:
            Float32 scalar: 1 if it is left out, else 0.
        """
        left_out = num_losses + num_gradients > 0
        for buffer, before in zip(self.buffers, self.buffers_before, strict=True):
            buffer.copy_(torch.where(left_out, before, buffer))
        return left_out.float()

    def settle(self, passes: StepPasses, num_losses: int, num_gradients: int) -> bool:
        """
        Whether a step was left out, called when the host knows. If so, it is counted and listed. Call it for steps in
        order.

        Raises:
            RunStopped: on all processes, after more than `max_in_a_row` such steps.
        """
        if not num_losses and not num_gradients:
            self.state["nonfinite_steps_in_a_row"] = 0
            return False
        if self._is_scale_search(num_losses):
            return True
        self.state["nonfinite_steps"] += 1
        self.state["nonfinite_steps_in_a_row"] += 1
        if self.batches is not None:
            self.batches.write(passes.number, passes.losses, passes.row_ids)
        self._report(passes, num_losses)
        return True

    def _is_scale_search(self, num_losses: int) -> bool:
        """
        Under fp16, whether a gradient overflowed only because the loss scaler searches its scale. Such a step is left
        out. It is only counted if the scale is below 1, where the search is over.
        """
        if self.accelerator.scaler is None:
            return False
        scale = self.accelerator.scaler.get_scale()
        # The optimizer does not step. Without this update, the next step would be unscaled twice.
        self.accelerator.scaler.update()
        return not num_losses and scale >= 1

    def _report(self, passes: StepPasses, num_losses: int) -> None:
        listed = [
            (loss.item(), row_ids)
            for loss, row_ids in zip(passes.losses, passes.row_ids, strict=True)
            if not num_losses or not loss.isfinite()
        ]
        listed = gather_object(listed)
        row_ids = [row_id for _, ids in listed for row_id in ids]
        losses = [str(loss) for loss, _ in listed] if num_losses else []
        step, in_a_row = passes.number, self.state["nonfinite_steps_in_a_row"]
        if self.accelerator.is_main_process:
            record = {"step": step, "losses": losses, "row_ids": row_ids}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        what = f"the loss of step {step} is {', '.join(sorted(set(losses)))}"
        if not num_losses:
            what = f"the gradient of step {step} is not finite, though the loss is"
        images = ", ".join(row_ids[:MAX_ROW_IDS_IN_LOG])
        if len(row_ids) > MAX_ROW_IDS_IN_LOG:
            images += f" and {len(row_ids) - MAX_ROW_IDS_IN_LOG} more in {self.path}"
        if in_a_row > self.max_in_a_row:
            raise RunStopped(
                f"{what}, number {in_a_row} in a row where `max_nonfinite_steps` ({self.max_in_a_row}) are left out;"
                " weights and checkpoints are from before them. Most often `learning_rate` is too high, or"
                f" `warmup_steps` are too few; give a lower or more. Images of the step: {images}."
            )
        logger.warning(
            "%s; it is left out, as number %d in a row of at most %d; images: %s", what, in_a_row, self.max_in_a_row,
            images,
        )  # fmt: skip
