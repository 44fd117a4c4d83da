"""Logistic regression on frozen features, for small data sets (paper, section 7.1, the transfer sets)."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from ..features import DatasetOrRows, FeatureExtractor
from ..pictures.figures import draw_beside_numbers, draw_curves
from ..progress import Progress
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE, SEEDS
from .classification.labelled_features import labelled_features, random_split
from .classification.labels import match_labels
from .metrics import Metrics, listed
from .protocols import folder_of_main, protocol


MAX_LOG10_C = 300  # float64 ends at 308


@protocol(
    "logistic_regression",
    task="image-classification",
    metrics={"logistic_regression_top1": "accuracy"},
    requires="sklearn",
)
def evaluate_logistic_regression(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    label_column: str = "label",
    log10_c_range: Sequence[float] = (-6.0, 5.0),
    num_cs: Annotated[int, AT_LEAST_ONE] = 45,
    validation_fraction: float = 0.1,
    max_iterations: Annotated[int, AT_LEAST_ONE] = 1000,
    tolerance: Annotated[float, NOT_NEGATIVE] = 1e-12,
    seed: Annotated[int, SEEDS] = 0,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Fit a logistic regression on `train_dataset`, with C chosen on a part of it, and measure it on `eval_dataset`.

    The features are CLS tokens, not normalised, of images whose short side is resized to the crop (no margin around
    the crop, unlike the other protocols). The fit is scikit-learn's in float64 on the CPU (L2, L-BFGS). C is the one
    with the best accuracy on a random part of the training images; then all of them are fitted.

    Args:
        extractor: the frozen model, and how it is run.
        train_dataset: the labelled images to learn from; those that cannot be decoded are left out, with a warning.
        eval_dataset: the labelled images to classify.
        label_column: name of the column that holds the labels.
        log10_c_range: smallest and largest power of 10 that is tried for C, the inverse of the regularisation.
        num_cs: values of C that are tried, evenly spaced between the two as powers.
        validation_fraction: share of the training images that C is chosen on, between 0 and 1.
        max_iterations: of L-BFGS, for each C. It is not an error if a fit ends there.
        tolerance: of the gradient, at which a fit ends.
        seed: of the choice of the validation images.
        output_dir: a folder for the plot `logistic_regression.png`. None: no plot.

    Returns:
        On `eval_dataset`: `logistic_regression_top1`, the accuracy, and `logistic_regression_mean_per_class`, the mean
        of the accuracies of its classes, both in [0, 1]. Also `logistic_regression_validation_top1` for the best C,
        and `logistic_regression_c`.

    Raises:
        ValueError: as `match_labels` or `FeatureExtractor.features`, an option is out of its range, or the images that
            are fitted while C is chosen have only one class.
    """
    labels = match_labels(train_dataset, eval_dataset, label_column)
    limit = MAX_LOG10_C
    if len(log10_c_range) != 2 or not -limit <= log10_c_range[0] <= log10_c_range[1] <= limit:
        raise ValueError(
            f"`log10_c_range` is {listed(log10_c_range)}, but must be two numbers from -{limit} to {limit}, the"
            " smaller one first."
        )
    random_split(len(labels.train), validation_fraction, seed)
    extractor.begin()
    labels.warn_of_absent_classes()

    extractor = replace(extractor, image_processor=without_margin(extractor.image_processor))
    features, train_labels, _ = labelled_features(extractor, train_dataset, labels.train)
    eval_features = extractor.features(eval_dataset, description="Features of the images to classify").values
    fit = partial(fit_logistic_regression, max_iterations=max_iterations, tolerance=tolerance)
    fit_rows, validation_rows = random_split(len(train_labels), validation_fraction, seed)
    if len(train_labels[fit_rows].unique()) < 2:
        raise ValueError(
            f"`validation_fraction` is {validation_fraction}, which leaves images of only one class to fit; give more"
            " images or a smaller share."
        )
    smallest, largest = log10_c_range
    cs = [float(c) for c in np.logspace(smallest, largest, num_cs)]
    path = _path_of_c(
        extractor, fit, cs, features[fit_rows], train_labels[fit_rows], features[validation_rows],
        train_labels[validation_rows],
    )  # fmt: skip
    best = max(path, key=path.__getitem__)  # the smallest of equal ones, which regularises most
    correct = torch.empty(0)
    if extractor.is_main_process:
        predicted = torch.from_numpy(fit(features, train_labels, c=best).predict(eval_features.double().numpy()))
        correct = (predicted == labels.eval).double()
    if extractor.processes is not None:
        correct = gather_object([correct])[0]
    per_class = [correct[labels.eval == label].mean() for label in labels.eval.unique()]
    chance = labels.most_frequent_share()
    metrics = Metrics(
        {
            "logistic_regression_top1": correct.mean().item(),
            "logistic_regression_mean_per_class": torch.stack(per_class).mean().item(),
            "logistic_regression_validation_top1": path[best],
            "logistic_regression_c": best,
        },
        num_classes=len(labels.classes),
        most_frequent_class_top1=chance,
    )
    metrics.note_edge("C of `log10_c_range`", path)
    draw_beside_numbers(
        folder_of_main(extractor, output_dir), "logistic_regression.png", draw_curves, {"validation": path}, x="C",
        y="top-1 accuracy on the validation part", log_x=True,
        title=f"Logistic regression, {len(validation_rows)} validation images",
        baselines={"always the most frequent class (evaluation data)": chance},
    )  # fmt: skip
    return metrics


def fit_logistic_regression(features, labels, *, c: float, max_iterations: int, tolerance: float, start=None):
    """A fitted `sklearn.linear_model.LogisticRegression`.

    Args:
        features: (n, D) tensor.
        labels: (n,) tensor of class indices.
        c: inverse of the regularisation: the loss is `|weights|^2 / 2 + c * sum of cross-entropies`.
        start: another fit of the same classes to start from.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=c, max_iter=max_iterations, tol=tolerance, warm_start=start is not None)
    if start is not None:
        classifier.coef_, classifier.intercept_, classifier.classes_ = start.coef_, start.intercept_, start.classes_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol's tolerance is below what float64 reaches
        return classifier.fit(features.double().numpy(), labels.numpy())


def without_margin(image_processor: Any) -> Any:
    """The processor with the short side resized to the crop, if it crops a square from the centre."""
    crop = getattr(image_processor, "crop_size", None)
    if not getattr(image_processor, "do_center_crop", False) or crop is None or crop["height"] != crop["width"]:
        return image_processor
    return type(image_processor).from_dict(image_processor.to_dict(), size={"shortest_edge": crop["height"]})


def _path_of_c(extractor, fit, cs, features, labels, validation_features, validation_labels) -> dict[float, float]:
    """Validation accuracy of each C. Each process fits its share from small to large C, starting from the last fit."""
    found, previous = [], None
    own_cs = cs[extractor.rank :: extractor.world_size]
    for c in Progress(own_cs, desc="Fitting the path of C", disable=not extractor.progress):
        previous = fit(features, labels, c=c, start=previous)
        predicted = torch.from_numpy(previous.predict(validation_features.double().numpy()))
        found.append((c, (predicted == validation_labels).double().mean().item()))
    if extractor.processes is not None:
        found = gather_object(found)
    return dict(sorted(found))
