"""Labels of two datasets in one numbering, matched by the names of their classes and never by their numbers.

The original reads class numbers from its own files, where the numbers of two datasets may silently differ.
"""

import logging
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import datasets
import torch
from torch import Tensor

from ...features import DatasetOrRows, require_column


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchedLabels:
    """Labels of two datasets in one numbering.

    Attributes:
        train: (n,) class indices in [0, C), one for each row of the first dataset.
        eval: (m,) class indices in [0, C), one for each row of the second.
        classes: the C names (or numbers) of the classes, in the order of the first dataset's `ClassLabel`, or sorted
            if it has none.
    """

    train: Tensor
    eval: Tensor
    classes: list[str] | list[int]

    def most_frequent_share(self) -> float:
        """The accuracy on the second dataset of always predicting the most frequent class of the first."""
        return (self.eval == self.train.bincount().argmax()).double().mean().item()

    def warn_of_absent_classes(self) -> None:
        """Log a warning with the number of classes of the first dataset that are not measured."""
        present = self.train.unique()
        num_absent = int((~torch.isin(present, self.eval)).sum())
        if num_absent:
            logger.warning(
                "%d of the %d classes of the training data have no image in the evaluation data",
                num_absent, len(present),
            )  # fmt: skip


def match_labels(train_dataset: DatasetOrRows, eval_dataset: DatasetOrRows, label_column: str) -> MatchedLabels:
    """Class indices of both datasets in one numbering.

    A `ClassLabel` column stands for the names of its classes, so it may be compared with a column of strings or with
    another `ClassLabel` that has the same names in another order. Two columns of plain integers are matched by value.
    Classes of `train_dataset` without a row in `eval_dataset` are kept.

    Raises:
        ValueError: the column is missing; a row has no label; one dataset has names and the other plain integers;
            there is only one class; or `eval_dataset` has a class without an image in `train_dataset`.
    """
    train_labels, names = _labels(train_dataset, label_column, "training data")
    eval_labels, _ = _labels(eval_dataset, label_column, "evaluation data")
    kinds = [("names" if isinstance(labels[0], str) else "numbers") for labels in (train_labels, eval_labels)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"`label_column` {label_column!r} holds {kinds[0]} of classes in the training data and {kinds[1]} in the "
            "evaluation data, which cannot be matched: cast both to a datasets.ClassLabel."
        )
    present: set[Any] = set(train_labels)
    if len(present) < 2:
        raise ValueError(
            f"`label_column` {label_column!r} has the one class {train_labels[0]!r} in the training data, but at"
            " least 2 are needed."
        )
    unknown = [label for label in dict.fromkeys(eval_labels) if label not in present]
    if unknown:
        raise ValueError(
            f"`label_column` {label_column!r} has {len(unknown)} classes in the evaluation data that the training"
            f" data lacks ({', '.join(map(repr, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}): every image to "
            "classify needs a class of the training data."
        )
    classes = names or sorted(present)
    index: dict[Any, int] = {label: i for i, label in enumerate(classes)}
    return MatchedLabels(
        train=torch.tensor([index[label] for label in train_labels]),
        eval=torch.tensor([index[label] for label in eval_labels]),
        classes=classes,
    )


def _labels(dataset, label_column: str, of: str) -> tuple[list[int] | list[str], list[str] | None]:
    """The labels of a dataset, as names if it has names, and all these names if it is a `ClassLabel`."""
    hint = "name the column of the classes, or give a folder of images with a folder for each class"
    require_column(dataset, label_column, "label_column", of=of, hint=hint)
    feature = None
    if isinstance(dataset, datasets.Dataset):
        feature = dataset.features[label_column]
        values = dataset.with_format(None)[label_column][:]
    else:
        values = [row[label_column] for row in dataset]
    for row, value in enumerate(values):
        if not isinstance(value, Integral | str) or isinstance(value, str) != isinstance(values[0], str):
            raise ValueError(
                f"`label_column` {label_column!r} of row {row} is {value!r}, but all must be integers or all strings."
            )
    if not isinstance(feature, datasets.ClassLabel):
        return values, None
    names = feature.names
    for row, value in enumerate(values):
        if not 0 <= value < len(names):
            raise ValueError(
                f"`label_column` {label_column!r} of row {row} is {value}, but must be one of the {len(names)} "
                "classes: remove the rows without a label."
            )
    return [names[value] for value in values], names
