"""Logistic regression on frozen features, for small data sets (paper, section 7.1, the transfer sets)."""

import math
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from ..features import extract_features
from ..pictures.figures import draw_curves, picture_beside_numbers
from .classification.labelled_features import labelled_features, random_split
from .classification.labels import MatchedLabels, match_labels, warn_of_absent_classes
from .extras import check_extras
from .findings import keep, listed, note_edge


MAX_LOG10_C = 300  # float64 ends at 308


def evaluate_logistic_regression(
    model: nn.Module,
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    image_column: str = "image",
    label_column: str = "label",
    log10_c_range: Sequence[float] = (-6.0, 5.0),
    num_cs: int = 45,
    validation_fraction: float = 0.1,
    max_iterations: int = 1000,
    tolerance: float = 1e-12,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
    processes: PartialState | None = None,
    output_dir: str | os.PathLike | None = None,
    findings: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Fit a logistic regression on `train_dataset`, its C chosen on a part of it, and measure it on `eval_dataset`.

    The features are CLS tokens, not normalised, of images whose short side is resized to the crop (no margin around
    the crop, unlike the other protocols). The fit is scikit-learn's in float64 on the CPU (L2, L-BFGS). C is the one
    with the best accuracy on a random part of the training images; then all of them are fitted.

    Args:
        model, image_processor, image_column, batch_size, num_workers, device, autocast_dtype, progress, processes:
            see `iterate_features`; the columns have the same names in both datasets.
        train_dataset: the labelled images to learn from; those that cannot be decoded are left out, with a warning.
        eval_dataset: the labelled images to classify.
        label_column: name of the column that holds the labels.
        log10_c_range: smallest and largest power of 10 that is tried for C, the inverse of the regularisation.
        num_cs: values of C that are tried, evenly spaced between the two as powers.
        validation_fraction: share of the training images that C is chosen on, between 0 and 1.
        max_iterations: of L-BFGS, for each C. A fit may end there, which is no error.
        tolerance: of the gradient, at which a fit ends.
        seed: of the choice of the validation images.
        output_dir: a folder for the plot `logistic_regression.png`. None: no plot.
        findings: a mapping to be filled with what was found besides the metrics, see `findings`.

    Returns:
        On `eval_dataset`: `logistic_regression_top1`, the accuracy, and `logistic_regression_mean_per_class`, the mean
        over its classes of the accuracy within each, both in [0, 1]. Also `logistic_regression_validation_top1` of the
        best C, and `logistic_regression_c`.

    Raises:
        ValueError: what `match_labels` or `extract_features` raises, an option is out of its range, or the images to
            fit while C is chosen have one class only.
    """
    check_extras("logistic_regression")
    labels = check_logistic_regression(
        train_dataset, eval_dataset, label_column=label_column, log10_c_range=log10_c_range, num_cs=num_cs,
        validation_fraction=validation_fraction, max_iterations=max_iterations, tolerance=tolerance, seed=seed,
    )  # fmt: skip
    warn_of_absent_classes(labels)
    keep(findings, num_classes=len(labels.classes), most_frequent_class_top1=labels.most_frequent_share())
    extraction = {
        "image_column": image_column,
        "batch_size": batch_size,
        "device": device,
        "autocast_dtype": autocast_dtype,
        "num_workers": num_workers,
        "progress": progress,
        "processes": processes,
    }
    image_processor = without_margin(image_processor)
    features, train_labels = labelled_features(model, train_dataset, labels.train, image_processor, **extraction)
    eval_features = extract_features(
        model, eval_dataset, image_processor, description="Features of the images to classify", **extraction
    )
    fit = partial(fit_logistic_regression, max_iterations=max_iterations, tolerance=tolerance)
    fit_rows, validation_rows = random_split(len(train_labels), validation_fraction, seed)
    if len(train_labels[fit_rows].unique()) < 2:
        raise ValueError(
            f"`validation_fraction` is {validation_fraction}, which leaves images of one class only to fit; give more"
            " images or a smaller share."
        )
    cs = [float(c) for c in np.logspace(*log10_c_range, num_cs)]
    path = _path_of_c(
        fit, cs, features[fit_rows], train_labels[fit_rows], features[validation_rows], train_labels[validation_rows],
        progress=progress, processes=processes,
    )  # fmt: skip
    best = max(path, key=path.get)  # of equal ones the smallest, which regularises most
    note_edge(findings, "C of `log10_c_range`", path)
    metrics = {}
    if processes is None or processes.is_main_process:
        predicted = torch.from_numpy(fit(features, train_labels, c=best).predict(eval_features.double().numpy()))
        correct = (predicted == labels.eval).double()
        per_class = [correct[labels.eval == label].mean() for label in labels.eval.unique()]
        metrics = {
            "logistic_regression_top1": correct.mean().item(),
            "logistic_regression_mean_per_class": torch.stack(per_class).mean().item(),
            "logistic_regression_validation_top1": path[best],
            "logistic_regression_c": best,
        }
        if output_dir is not None:
            file = Path(output_dir) / "logistic_regression.png"
            with picture_beside_numbers(file):
                draw_curves(
                    {"validation": path}, file, x="C", y="top-1 accuracy on the validation part", log_x=True,
                    title=f"Logistic regression, {len(validation_rows)} validation images",
                    baselines={"always the most frequent class (evaluation data)": labels.most_frequent_share()},
                )  # fmt: skip
    return metrics if processes is None else gather_object([metrics])[0]


def check_logistic_regression(
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    *,
    label_column: str,
    log10_c_range: Sequence[float],
    num_cs: int,
    validation_fraction: float,
    max_iterations: int,
    tolerance: float,
    seed: int,
) -> MatchedLabels:
    """What `evaluate_logistic_regression` refuses before any work, and the labels."""
    labels = match_labels(train_dataset, eval_dataset, label_column)
    if num_cs < 1:
        raise ValueError(f"`num_cs` is {num_cs}, but must be at least 1.")
    limit = MAX_LOG10_C
    if len(log10_c_range) != 2 or not -limit <= log10_c_range[0] <= log10_c_range[1] <= limit:
        raise ValueError(
            f"`log10_c_range` is {listed(log10_c_range)}, but must be two numbers from -{limit} to {limit}, the"
            " smaller one first."
        )
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"`tolerance` is {tolerance}, but must be a finite number of at least 0.")
    if max_iterations < 1:
        raise ValueError(f"`max_iterations` is {max_iterations}, but must be at least 1.")
    random_split(len(labels.train), validation_fraction, seed)
    return labels


def fit_logistic_regression(features, labels, *, c: float, max_iterations: int, tolerance: float, start=None):
    """A fitted `sklearn.linear_model.LogisticRegression`.

    Args:
        features: (n, D) tensor.
        labels: (n,) tensor of class indices.
        c: inverse of the regularisation: the loss is `|weights|^2 / 2 + c * sum of cross-entropies`.
        start: another fit to start from, of the same classes.
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
    """The processor with the short side resized to the crop, where it crops a square from the centre."""
    crop = getattr(image_processor, "crop_size", None)
    if not getattr(image_processor, "do_center_crop", False) or crop is None or crop["height"] != crop["width"]:
        return image_processor
    return partial(image_processor, size={"shortest_edge": crop["height"]})


def _path_of_c(
    fit, cs, features, labels, validation_features, validation_labels, *, progress, processes
) -> dict[float, float]:
    """Validation accuracy of each C. Each process fits its share, from small to large, each from the one before."""
    rank, world_size = (processes.process_index, processes.num_processes) if processes is not None else (0, 1)
    found, previous = [], None
    for c in tqdm(cs[rank::world_size], desc="Fitting the path of C", disable=not progress):
        previous = fit(features, labels, c=c, start=previous)
        predicted = torch.from_numpy(previous.predict(validation_features.double().numpy()))
        found.append((c, (predicted == validation_labels).double().mean().item()))
    if processes is not None:
        found = gather_object(found)
    return dict(sorted(found))
