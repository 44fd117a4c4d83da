"""Numbers of the steps since the last log line: losses, features, speed, memory, time waiting for data."""

import time
from collections import defaultdict, deque
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from ..students import names_of, own_of_student, prefixed
from .feature_window import FeatureWindow


class StepWindow:
    """
    Sums stay on the device until they are read, so that adding a step does not wait for the device.

    Args:
        peak_flops: peak FLOP/s of the device of this process; `None` if it is not known.
    """

    def __init__(self, peak_flops: float | None = None):
        self.peak_flops = peak_flops
        self.restart()

    def restart(self) -> None:
        """Forget everything, and start the time again."""
        self.sums: dict[str, torch.Tensor | float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.features: dict[str, FeatureWindow] = defaultdict(FeatureWindow)
        self.of_this_step: list[dict[str, torch.Tensor]] = []
        self.undecided: deque[list[dict[str, torch.Tensor]]] = deque()
        self.num_images = 0
        self.flops: int | torch.Tensor = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, output: Mapping[str, torch.Tensor], num_images: int) -> None:
        """
        Count one forward pass: its scalars by name, its features, and its images over all processes. Names may have
        the name of a student as a prefix.
        """
        self.of_this_step.append({name: value.detach() for name, value in output.items()})
        self.num_images += num_images

    def end_step(self) -> None:
        """End a step, which consists of all passes since the last one. `decide` is called for it later."""
        self.undecided.append(self.of_this_step)
        self.of_this_step = []

    def decide(self, *, left_out: bool) -> None:
        """Count the earliest undecided step in the means, or leave it out, because a NaN would spoil the means."""
        for output in self.undecided.popleft():
            for name, value in output.items():
                if value.dim() == 0:
                    self.sums[name] = self.sums[name] + (torch.zeros_like(value) if left_out else value)
                    self.counts[name] += not left_out
            if not left_out:
                for student in names_of(output):
                    self.features[student].add(own_of_student(output, student))

    def add_wait(self, seconds: float) -> None:
        """Count time spent waiting for a batch."""
        self.waited += seconds

    def add_flops(self, flops: int | torch.Tensor) -> None:
        """Count the FLOPs of the networks of this process in a pass; a scalar on the device, or a number."""
        self.flops = self.flops + flops

    def means(self) -> dict[str, torch.Tensor]:
        """Mean of every scalar over the forward passes that had it and count; NaN if all were left out."""
        return {name: value / self.counts[name] for name, value in self.sums.items()}

    def feature_statistics(self, accelerator: Accelerator) -> dict[str, torch.Tensor]:
        """`FeatureWindow.statistics` of each student; a collective that every process calls."""
        statistics = {}
        for student, features in self.features.items():
            statistics |= prefixed(features.statistics(accelerator), student)
        return statistics

    def rates(self, device: torch.device) -> dict[str, float]:
        """
        Call this after waiting for the device. `images_per_second` is that of all processes. The others are for this
        process: `data_wait_share` is the share of the time in [0, 1] spent waiting for data. `mfu`, if the peak is
        known, is the share of its FLOP/s that the networks needed. On a GPU, `peak_memory_gib` is the most memory that
        tensors have taken since the process started.
        """
        elapsed = time.perf_counter() - self.started
        rates = {"images_per_second": self.num_images / elapsed, "data_wait_share": self.waited / elapsed}
        if self.peak_flops is not None:
            rates["mfu"] = float(self.flops) / elapsed / self.peak_flops
        if device.type == "cuda":
            rates["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        return rates


def format_progress(metrics: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """
    One line for a progress bar: every part of the loss, or the loss of every student; images per second, and the other
    rates if they exist. Waiting for data is shown if it is at least a twentieth of the time.
    """
    parts = {
        name.removesuffix("/loss").removesuffix("_loss"): value
        for name, value in metrics.items()
        if name.endswith("/loss") or (name.endswith("_loss") and "/" not in name)
    }
    line = f" loss {metrics['loss']:.3f} ({' '.join(f'{name} {value:.3f}' for name, value in parts.items())})"
    if "target_entropy" in metrics:
        line += f" entropy {metrics['target_entropy']:.2f}"
    line += f", {rates['images_per_second']:.3g} images/s"
    if "mfu" in rates:
        line += f", {rates['mfu']:.0%} of peak"
    if "peak_memory_gib" in rates:
        line += f", {rates['peak_memory_gib']:.1f} GiB"
    if rates["data_wait_share"] >= 0.05:
        line += f", {rates['data_wait_share']:.0%} waiting for data"
    return line
