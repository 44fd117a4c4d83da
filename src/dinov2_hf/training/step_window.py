"""What the steps since the last log line were like: losses, features, images per second, time waiting for data."""

import time
from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from .feature_window import FeatureWindow


class StepWindow:
    """Sums stay on the device until they are asked for, so that adding a step does not wait for it."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Forget everything; time runs from here."""
        self.sums: dict[str, torch.Tensor | float] = defaultdict(float)
        self.features = FeatureWindow()
        self.of_this_step: list[dict[str, torch.Tensor]] = []
        self.num_added = 0
        self.num_images = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, output: Mapping[str, torch.Tensor], num_images: int) -> None:
        """Count one forward pass: its scalars by name, its features, and its images over all processes."""
        self.of_this_step.append({name: value.detach() for name, value in output.items()})
        self.num_images += num_images

    def end_step(self, *, left_out: bool = False) -> None:
        """Let what was added since the last step count in the means, or not: a NaN would take the others with it."""
        for output in self.of_this_step:
            for name, value in output.items():
                if value.dim() == 0:
                    self.sums[name] = self.sums[name] + (torch.zeros_like(value) if left_out else value)
            if not left_out:
                self.features.add(output)
                self.num_added += 1
        self.of_this_step = []

    def add_wait(self, seconds: float) -> None:
        """Count time spent waiting for a batch."""
        self.waited += seconds

    def means(self) -> dict[str, torch.Tensor]:
        """Mean of every scalar over the forward passes that count; NaN if all were left out."""
        return {name: value / self.num_added for name, value in self.sums.items()}

    def feature_statistics(self, accelerator: Accelerator) -> dict[str, torch.Tensor]:
        """See `FeatureWindow.statistics`; a collective that every process calls."""
        return self.features.statistics(accelerator)

    def rates(self) -> dict[str, float]:
        """`images_per_second`, and `data_wait_share`, the share of the time in [0, 1] spent waiting for data."""
        elapsed = time.perf_counter() - self.started
        return {"images_per_second": self.num_images / elapsed, "data_wait_share": self.waited / elapsed}


def format_progress(metrics: dict[str, float], images_per_second: float) -> str:
    """One line with every loss part, for a progress bar."""
    names = {"dino_local_loss": "local", "dino_global_loss": "global", "ibot_loss": "ibot", "koleo_loss": "koleo"}
    parts = " ".join(f"{short} {metrics[name]:.3f}" for name, short in names.items() if name in metrics)
    return (
        f" loss {metrics['loss']:.3f} ({parts}) entropy {metrics['target_entropy']:.2f},"
        f" {images_per_second:.3g} images/s"
    )
