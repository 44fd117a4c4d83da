"""Many linear classifiers on the same features, trained together (paper, appendix B.3).

The best learning rate and the best features differ between backbones, so the protocol trains a classifier for each
choice and reports the best. Together they cost little more than one: they share the features, and all classifiers that
read the same features are a single matrix product.

Shapes: `B` images in a batch, `F` all features, `f` features that a group of classifiers reads, `L` learning rates,
`C` classes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor
from torch.nn import functional as F

from ...progress import Progress


# Before their scaling by the batch size. The original's code and the paper name different grids.
LEARNING_RATES = {
    "code": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    "paper": (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5),
}
MOMENTUM = 0.9
INITIAL_STD = 0.01


@dataclass(frozen=True)
class Choice:
    """One classifier of a grid: which features it reads, and at which learning rate it learns."""

    features: str
    learning_rate: float


class ClassifierGrid:
    """A linear classifier for every choice of features and learning rate.

    Each equals a classifier trained alone: cross-entropy, SGD with momentum 0.9 and no weight decay, initial weights
    from N(0, 0.01) that do not depend on the rest of the grid, initial bias 0.

    Args:
        features: for each name, the columns of the features that its classifiers read.
        learning_rates: L rates, before their scaling.
        learning_rate_scale: factor of all of them: images in a step of all processes, divided by 256.
        num_features: F.
        num_classes: C.
        seed: of the initial weights.
        device: of the weights, and of the batches.
        processes: the processes whose gradients are averaged. None: only this process.
    """

    def __init__(
        self,
        features: Mapping[str, slice],
        learning_rates: Sequence[float],
        *,
        learning_rate_scale: float,
        num_features: int,
        num_classes: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        processes: PartialState | None = None,
    ):
        self.features = dict(features)
        self.choices = [Choice(name, rate) for name in features for rate in learning_rates]
        self.processes = processes
        self._learning_rates = learning_rate_scale * torch.tensor(learning_rates, device=device)[:, None]
        self.weights, self.biases = {}, {}
        for name, columns in features.items():
            width = len(range(*columns.indices(num_features)))
            generator = torch.Generator().manual_seed(seed)
            weight = INITIAL_STD * torch.randn(width, 1, num_classes, generator=generator)
            self.weights[name] = weight.repeat(1, len(learning_rates), 1).to(device).requires_grad_()
            self.biases[name] = torch.zeros(len(learning_rates), num_classes, device=device, requires_grad=True)
        self._parameters = [*self.weights.values(), *self.biases.values()]
        self._momenta = [torch.zeros_like(parameter) for parameter in self._parameters]

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """(B, F) to (B, L, C) for each name of features."""
        logits = {}
        for name, columns in self.features.items():
            weight = self.weights[name]
            flat = features[:, columns] @ weight.flatten(1)
            logits[name] = flat.unflatten(1, weight.shape[1:]) + self.biases[name]
        return logits

    def step(self, features: Tensor, labels: Tensor, schedule: float) -> Tensor:
        """One step of all classifiers.

        Args:
            features: (B, F) float32.
            labels: (B,) class indices.
            schedule: factor of all learning rates, from 1 at the start to 0.

        Returns:
            The loss of each classifier before the step, in the order of `choices`.
        """
        losses = []
        with torch.enable_grad():
            for logits in self.logits(features).values():
                repeated = labels[:, None].expand(logits.shape[:2])
                losses.append(F.cross_entropy(logits.transpose(1, 2), repeated, reduction="none").mean(dim=0))
            all_losses = torch.cat(losses)
            # Every weight belongs to one loss only, so the gradient of the sum is the gradient of that loss.
            gradients = torch.autograd.grad(all_losses.sum(), self._parameters)
        if self.processes is not None and self.processes.num_processes > 1:
            gradients = reduce(list(gradients), reduction="mean")
        with torch.no_grad():
            torch._foreach_mul_(self._momenta, MOMENTUM)
            torch._foreach_add_(self._momenta, gradients)
            for parameter, momentum in zip(self._parameters, self._momenta, strict=True):
                parameter.addcmul_(momentum, self._learning_rates, value=-schedule)
        return all_losses.detach()

    def tensors(self) -> dict[str, Tensor]:
        """All weights and biases by name."""
        return {
            f"{name}, {kind}": tensor
            for kind, of_name in (("weight", self.weights), ("bias", self.biases))
            for name, tensor in of_name.items()
        }

    def classifier(self, choice: Choice) -> tuple[Tensor, Tensor]:
        """Weight (C, f) and bias (C,) of one classifier, as in a `torch.nn.Linear`, on the CPU."""
        index = [other.learning_rate for other in self.choices if other.features == choice.features].index(
            choice.learning_rate
        )
        weight, bias = self.weights[choice.features][:, index], self.biases[choice.features][index]
        return weight.detach().T.contiguous().cpu(), bias.detach().clone().cpu()


def train_grid(
    grid: ClassifierGrid,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_steps: int,
    *,
    progress: bool = False,
) -> None:
    """Train for `num_steps` batches of features (B, F) and labels (B,), with a cosine from 1 to 0.

    Raises:
        ValueError: the features are not finite.
    """
    description = f"Training {len(grid.choices)} classifiers"
    bar = Progress(
        zip(range(num_steps), batches, strict=False), desc=description, total=num_steps, disable=not progress
    )
    for step, (features, labels) in bar:
        losses = grid.step(features, labels, (1 + math.cos(math.pi * step / num_steps)) / 2)
        if step == 0 and not losses.isfinite().all():
            raise ValueError("model gives features that are not finite; it may have diverged.")
        if progress and step % 50 == 0:
            bar.set_postfix(lowest_loss=f"{losses.nan_to_num(torch.inf).min():.3f}", refresh=False)


def accuracies(
    grid: ClassifierGrid, features: Tensor, labels: Tensor, *, topk: int = 1, batch_size: int = 1024
) -> dict[Choice, float]:
    """Top-k accuracy of every classifier on features (n, F) and labels (n,) in memory.

    Each process of the grid measures its share, and all processes get all accuracies. Predictions of diverged weights
    count as wrong, whatever the label.
    """
    processes, device = grid.processes, grid._learning_rates.device
    own = slice(processes.process_index, None, processes.num_processes) if processes is not None else slice(None)
    correct = torch.zeros(len(grid.choices), dtype=torch.long, device=device)
    with torch.no_grad():
        for batch, answers in zip(features[own].split(batch_size), labels[own].split(batch_size), strict=True):
            logits = torch.cat(list(grid.logits(batch.to(device)).values()), dim=1)
            hits = logits.topk(topk, dim=2).indices == answers.to(device)[:, None, None]
            correct += (hits.any(dim=2) & logits.isfinite().all(dim=2)).sum(dim=0)
    counts = correct.tolist()
    if processes is not None:
        counts = [sum(shares) for shares in zip(*gather_object([counts]), strict=True)]
    return {choice: count / len(labels) for choice, count in zip(grid.choices, counts, strict=True)}


def best_choice(found: Mapping[Choice, float]) -> Choice:
    """The choice with the highest accuracy; the first one if several are equal."""
    return max(found, key=found.__getitem__)
