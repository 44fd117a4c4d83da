"""
Votes of the processes in each step: whether it is finite, and whether to stop for a preemption. They are counted on
the device, in one all-reduce. The host reads the counts when they have arrived, and the device continues until then.
"""

import torch
from accelerate import Accelerator


def count_processes(accelerator: Accelerator, *conditions: torch.Tensor | bool) -> torch.Tensor:
    """
    The number of processes on which each condition holds, a bool or a scalar tensor on the device; the same on all of
    them. `(len(conditions),)`, float32, on the device; the host does not wait.
    """
    device = accelerator.device
    flags = [
        # A kernel fills the tensor, because the host would wait for a number that is sent to the device.
        condition.float() if torch.is_tensor(condition) else torch.full((), float(condition), device=device)
        for condition in conditions
    ]
    return accelerator.reduce(torch.stack(flags), reduction="sum")


class CountsOnTheWay:
    """Counts that the device is still computing, and a copy for the host after them."""

    def __init__(self, counts: torch.Tensor):
        self._on_host, self._arrived = counts, None
        if counts.device.type != "cpu":
            self._on_host = counts.to("cpu", non_blocking=True)
            self._arrived = torch.get_device_module(counts.device).Event()
            self._arrived.record()

    def read(self) -> list[int]:
        """Wait for the counts, but not for later work of the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [round(count) for count in self._on_host.tolist()]
