"""The best linear classifier of a grid: options, training, and the choice on held-out or on evaluation images."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.sample_order import PreTrainingBatchSampler
from ...features import FeatureExtractor
from ..metrics import Metrics
from ..unmeasured_heads import train_once
from .classifier_grid import LEARNING_RATES, Choice, ClassifierGrid, accuracies, best_choice, train_grid
from .labelled_features import random_split
from .labels import MatchedLabels


@dataclass(frozen=True)
class GridTraining:
    """The options for training a grid.

    Args:
        grid: a name of `LEARNING_RATES`.
        num_steps: steps of SGD, with a cosine to 0.
        train_batch_size: images (or videos) in a step, for each process.
        validation_fraction: share of the training images to choose on; 0: the choice is made on the evaluation images.
        seed: seed of the initial weights, the order and the split.
    """

    grid: str
    num_steps: int
    train_batch_size: int
    validation_fraction: float
    seed: int

    def check(self, num_rows: int, extractor: FeatureExtractor) -> None:
        """`ValueError` if an option is out of its range for this number of training images."""
        self.order(len(self.split(num_rows)[0]), extractor)

    def split(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Rows to train on, and rows to choose on."""
        if not self.validation_fraction:
            return torch.arange(num_rows), torch.empty(0, dtype=torch.long)
        return random_split(num_rows, self.validation_fraction, self.seed)

    def order(self, num_rows: int, extractor: FeatureExtractor) -> PreTrainingBatchSampler:
        """The endless batches of rows of this process; `ValueError` if a global batch would contain an image twice."""
        if self.train_batch_size < 1 or self.train_batch_size * extractor.world_size > num_rows:
            raise ValueError(
                f"`train_batch_size` is {self.train_batch_size} on each of {extractor.world_size} processes, but"
                f" their sum must be between 1 and the {num_rows} training images."
            )
        return PreTrainingBatchSampler(
            num_rows, self.train_batch_size, seed=self.seed, rank=extractor.rank, world_size=extractor.world_size
        )

    def cached_batches(
        self, features: Tensor, labels: Tensor, rows: Tensor, extractor: FeatureExtractor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches of some rows of features in memory."""
        for keys in self.order(len(rows), extractor):
            batch = rows[[key.row for key in keys]]
            yield features[batch].to(extractor.device), labels[batch].to(extractor.device)


@dataclass(frozen=True)
class BestClassifier:
    """The best of a grid.

    Attributes:
        metrics: `{name}_top1` on the evaluation images and so on, see `train_best_classifier`.
        choice: which classifier it is.
        weight, bias: (C, f) and (C,), as in a `torch.nn.Linear`, on the CPU.
        found: the accuracy of every classifier.
    """

    metrics: Metrics
    choice: Choice
    weight: Tensor
    bias: Tensor
    found: dict[Choice, float]

    def curves(self) -> dict[str, dict[float, float]]:
        """The accuracies by learning rate, for each group of features."""
        curves: dict[str, dict[float, float]] = {}
        for choice, accuracy in self.found.items():
            curves.setdefault(choice.features, {})[choice.learning_rate] = accuracy
        return curves


def train_best_classifier(
    name: str,
    extractor: FeatureExtractor,
    training: GridTraining,
    batches: Iterable[tuple[Tensor, Tensor]],
    columns: Mapping[str, slice],
    eval_features: Tensor,
    labels: MatchedLabels,
    validation: tuple[Tensor, Tensor],
    *,
    settings: Mapping[str, Any],
    output_dir: str | Path | None,
) -> BestClassifier:
    """Train a grid and choose the best classifier.

    Args:
        name: name of the protocol; the names of metrics begin with it.
        batches: endless batches of features (B, F) and labels (B,).
        columns: the groups of classifiers, see `ClassifierGrid`.
        eval_features: (m, F), the features for `labels.eval`.
        validation: features and labels to choose on; None: the choice is made on `eval_features`.
        settings, output_dir: as in `train_once`.

    Returns:
        The best classifier; its metrics are `{name}_top1`, `{name}_top5` if there are more than 5 classes,
        `{name}_best_learning_rate` and, with a validation part, `{name}_validation_top1`.
    """
    rates = LEARNING_RATES[training.grid]
    classifiers = ClassifierGrid(
        columns,
        rates,
        learning_rate_scale=training.train_batch_size * extractor.world_size / 256,
        num_features=eval_features.shape[1],
        num_classes=len(labels.classes),
        seed=training.seed,
        device=extractor.device or "cpu",
        processes=extractor.processes,
    )
    train_once(
        extractor,
        classifiers.tensors(),
        lambda: train_grid(classifiers, batches, training.num_steps, progress=extractor.progress),
        settings=settings,
        output_dir=output_dir,
    )
    metrics = Metrics(num_classes=len(labels.classes), most_frequent_class_top1=labels.most_frequent_share())
    found = chosen_on = accuracies(classifiers, eval_features, labels.eval)
    if len(validation[1]):
        chosen_on = accuracies(classifiers, *validation)
        metrics[f"{name}_validation_top1"] = max(chosen_on.values())
    best = best_choice(chosen_on)
    metrics[f"{name}_top1"] = found[best]
    if len(labels.classes) > 5:
        metrics[f"{name}_top5"] = accuracies(classifiers, eval_features, labels.eval, topk=5)[best]
    metrics[f"{name}_best_learning_rate"] = best.learning_rate
    by_rate = {rate: max(v for choice, v in chosen_on.items() if choice.learning_rate == rate) for rate in rates}
    metrics.note_edge(f"learning rate of `grid` {training.grid}", by_rate)
    return BestClassifier(metrics, best, *classifiers.classifier(best), found)
