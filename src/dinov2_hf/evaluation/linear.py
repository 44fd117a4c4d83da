"""Linear classification of frozen features (paper, section 7 and appendix B.3).

A grid of linear classifiers is trained together: on the CLS tokens of the last block or the last 4, with or without
the mean patch of the last block, each at 13 learning rates. The best one is reported.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..atomic_files import check_new_folder
from ..features import evaluation_mode, extract_features, last_layers_and_mean_patch_features
from ..output_folders import write_text
from ..pictures.figures import draw_curves, picture_beside_numbers
from .classification.augmented_images import crop_size_of, training_loader
from .classification.classifier_grid import (
    LEARNING_RATES,
    Choice,
    ClassifierGrid,
    accuracies,
    best_choice,
    cached_batches,
    check_grid,
    train_grid,
    training_order,
)
from .classification.head import save_classifier
from .classification.labelled_features import labelled_features, random_split, select_rows
from .classification.labels import MatchedLabels, match_labels, warn_of_absent_classes
from .findings import keep, listed, note_edge
from .fingerprints import training_settings
from .unmeasured_heads import forget_unmeasured, train_once


def evaluate_linear(
    model: nn.Module,
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    image_column: str = "image",
    label_column: str = "label",
    grid: Literal["code", "paper"] = "code",
    num_layers: Sequence[int] | None = None,
    num_steps: int = 12500,
    train_batch_size: int = 128,
    cache_features: bool = False,
    validation_fraction: float = 0.0,
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
    """Train linear classifiers on `train_dataset`, and report the best on `eval_dataset`.

    Labels are matched by name, see `match_labels`. A training image that cannot be decoded is replaced by another, or
    left out of cached features; an image to classify is never left out.

    Args:
        model, image_processor, image_column, num_workers, device, autocast_dtype, progress, processes: see
            `iterate_features`; the columns have the same names in both datasets.
        train_dataset: the labelled images to learn from.
        eval_dataset: the labelled images to classify.
        label_column: name of the column that holds the labels.
        grid: the 13 learning rates: of the original's "code", 1e-5 to 0.1, or of the "paper", 1e-4 to 0.5. They are
            applied times the images in a step of all processes over 256.
        num_layers: last blocks whose CLS tokens a classifier reads, a group of classifiers for each number. None: 1
            and 4, or 1 and all where the model has fewer than 4.
        num_steps: steps of SGD, with a cosine to 0.
        train_batch_size: images in a step, for each process.
        cache_features: train on features that are taken once, without augmentation, and kept in memory as float32:
            many times faster, and usually a little less accurate. Otherwise every step sees new random crops.
        validation_fraction: share of the training images to choose the best classifier on. 0: it is chosen on
            `eval_dataset` itself, as the original does, which flatters it a little.
        seed: of the initial weights, the order, the crops and the validation split.
        batch_size: images in a forward pass that takes features for keeps.
        output_dir: a folder for `model`, the best classifier with its backbone as a `DINOv2ForImageClassification`
            (of another model than `DINOv2Model`: the head alone), for `grid.json`, the accuracy of every classifier,
            and the plot `linear.png`. None: nothing is written. While the classifiers are not measured, they are in
            `unmeasured_head.safetensors`, and the next call with the same arguments does not train them again.
        findings: a mapping to be filled with what was found besides the metrics, see `findings`.

    Returns:
        Of the best classifier the accuracies in [0, 1] on `eval_dataset`, `linear_top1` and, with more than 5 classes,
        `linear_top5`; and what it is, `linear_best_learning_rate` (before scaling), `linear_best_num_layers` and
        `linear_best_patch_mean` (0 or 1). With a validation split also `linear_validation_top1`.

    Raises:
        ValueError: what `match_labels` or `extract_features` raises, the model has fewer blocks than `num_layers`
            asks for, or an option is out of its range.
    """
    labels, num_layers = check_linear(
        model, train_dataset, eval_dataset, label_column=label_column, grid=grid, num_layers=num_layers,
        num_steps=num_steps, train_batch_size=train_batch_size, cache_features=cache_features,
        validation_fraction=validation_fraction, seed=seed, image_processor=image_processor, processes=processes,
        output_dir=output_dir,
    )  # fmt: skip
    warn_of_absent_classes(labels)
    keep(findings, num_layers=num_layers, num_classes=len(labels.classes))
    train_labels, classes = labels.train, labels.classes
    groups = feature_groups(model, num_layers)
    settings = training_settings(
        model, train_dataset, image_processor, label_column=label_column, image_column=image_column, grid=grid,
        num_layers=num_layers, num_steps=num_steps, train_batch_size=train_batch_size, cache_features=cache_features,
        validation_fraction=validation_fraction, seed=seed, precision=str(autocast_dtype), classes=classes,
        num_processes=1 if processes is None else processes.num_processes,
    )  # fmt: skip
    validation = None
    if validation_fraction:
        rows, validation_rows = random_split(len(train_labels), validation_fraction, seed)
        validation = select_rows(train_dataset, validation_rows), train_labels[validation_rows]
        train_dataset, train_labels = select_rows(train_dataset, rows), train_labels[rows]
    order = training_order(len(train_labels), train_batch_size, seed=seed, processes=processes)

    if device is not None:
        model.to(device)
    device = next(model.parameters()).device
    depth = max(num_layers)
    extraction = {
        "kind": "last_layers_and_mean_patch",
        "num_layers": depth,
        "image_column": image_column,
        "batch_size": batch_size,
        "autocast_dtype": autocast_dtype,
        "num_workers": num_workers,
        "progress": progress,
        "processes": processes,
    }
    # Before the training, so that an image that cannot be decoded is known before hours of it.
    eval_features = extract_features(
        model, eval_dataset, image_processor, description="Features of the images to classify", **extraction
    )
    if validation is not None:
        validation = labelled_features(model, *validation, image_processor, **extraction)
    if cache_features:
        cached, cached_labels = labelled_features(model, train_dataset, train_labels, image_processor, **extraction)
        order = training_order(len(cached), train_batch_size, seed=seed, processes=processes)
        batches = cached_batches(cached, cached_labels, order, device)
    else:
        num_channels = getattr(model.config, "num_channels", 3)
        loader = training_loader(
            train_dataset, image_column, image_processor, order, num_channels=num_channels, num_workers=num_workers,
            pin_memory=device.type == "cuda",
        )  # fmt: skip
        batches = augmented_batches(model, loader, train_labels, depth, autocast_dtype)
    classifiers = ClassifierGrid(
        {name: group.columns for name, group in groups.items()},
        LEARNING_RATES[grid],
        learning_rate_scale=train_batch_size * (processes.num_processes if processes is not None else 1) / 256,
        num_features=model.config.hidden_size * (depth + 1),
        num_classes=len(classes),
        seed=seed,
        device=device,
        processes=processes,
    )
    train_once(
        classifiers.tensors(),
        lambda: train_grid(classifiers, batches, num_steps, progress=progress),
        settings=settings,
        output_dir=output_dir,
        processes=processes,
    )
    found = accuracies(classifiers, eval_features, labels.eval)
    metrics, best, chosen_on = {}, best_choice(found), found
    if validation is not None:
        chosen_on = accuracies(classifiers, *validation)
        best = best_choice(chosen_on)
        metrics["linear_validation_top1"] = chosen_on[best]
    metrics["linear_top1"] = found[best]
    if len(classes) > 5:
        metrics["linear_top5"] = accuracies(classifiers, eval_features, labels.eval, topk=5)[best]
    group = groups[best.features]
    metrics["linear_best_learning_rate"] = best.learning_rate
    metrics["linear_best_num_layers"] = float(group.num_layers)
    metrics["linear_best_patch_mean"] = float(group.use_patch_mean)
    by_rate = {rate: max(v for c, v in chosen_on.items() if c.learning_rate == rate) for rate in LEARNING_RATES[grid]}
    note_edge(findings, f"learning rate of `grid` {grid}", by_rate)
    keep(findings, most_frequent_class_top1=labels.most_frequent_share())
    if output_dir is not None and (processes is None or processes.is_main_process):
        weight, bias = classifiers.classifier(best)
        save_classifier(
            model,
            weight,
            bias,
            classes=classes,
            num_layers=group.num_layers,
            use_patch_mean=group.use_patch_mean,
            image_processor=image_processor,
            folder=Path(output_dir) / "model",
        )
        write_grid(found, Path(output_dir), labels)
    forget_unmeasured(output_dir, processes)
    return metrics


def check_linear(
    model: nn.Module,
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    *,
    label_column: str,
    grid: str,
    num_layers: Sequence[int] | None,
    num_steps: int,
    train_batch_size: int,
    cache_features: bool,
    validation_fraction: float,
    seed: int,
    image_processor: Any,
    processes: PartialState | None,
    output_dir: str | os.PathLike | None,
) -> tuple[MatchedLabels, list[int]]:
    """What `evaluate_linear` refuses before any work; the labels, and the numbers of blocks that are read."""
    labels = match_labels(train_dataset, eval_dataset, label_column)
    if num_layers is None:
        num_layers = sorted({1, min(4, blocks_and_width(model)[0])})
    feature_groups(model, num_layers)
    check_grid(grid)
    if num_steps < 1:
        raise ValueError(f"`num_steps` is {num_steps}, but must be at least 1.")
    num_rows = len(labels.train)
    if validation_fraction:
        num_rows = len(random_split(num_rows, validation_fraction, seed)[0])
    training_order(num_rows, train_batch_size, seed=seed, processes=processes)
    if not cache_features:
        crop_size_of(image_processor)
    if output_dir is not None:
        check_new_folder(Path(output_dir) / "model", "model", overwrite=True)
    return labels, list(num_layers)


def augmented_batches(
    model: nn.Module, loader: DataLoader, labels: Tensor, num_layers: int, autocast_dtype: torch.dtype | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, (num_layers + 1) * D) of the crops of a `training_loader`, and the labels of their rows."""
    device = next(model.parameters()).device
    for rows, pixel_values in loader:
        autocast = torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
        with evaluation_mode(model), torch.no_grad(), autocast:
            pixel_values = pixel_values.to(device, non_blocking=True)
            features = last_layers_and_mean_patch_features(model, pixel_values, num_layers)
        yield features.float(), labels[rows].to(device)


class FeatureGroup:
    """The features of one group of classifiers: the CLS tokens of the last blocks, and the mean patch or not.

    Of the features of all, which are the CLS tokens of `depth` blocks, shallow to deep, and the mean patch, these are
    neighbouring columns.
    """

    def __init__(self, num_layers: int, use_patch_mean: bool, depth: int, hidden_size: int):
        self.num_layers, self.use_patch_mean = num_layers, use_patch_mean
        self.columns = slice((depth - num_layers) * hidden_size, (depth + use_patch_mean) * hidden_size)


def feature_groups(model: nn.Module, num_layers: Sequence[int]) -> dict[str, FeatureGroup]:
    """The groups of classifiers of a grid by name.

    Raises:
        ValueError: the model has not so many blocks, or does not say how many.
    """
    blocks, hidden_size = blocks_and_width(model)
    if not num_layers or min(num_layers) < 1 or max(num_layers) > blocks:
        raise ValueError(
            f"`num_layers` is {listed(num_layers)}, but must be numbers from 1 to the {blocks} blocks of the model."
        )
    groups = {}
    for use_patch_mean in (False, True):
        for number in sorted(set(num_layers)):
            name = f"CLS of {number} block{'s' if number > 1 else ''}" + (", mean patch" if use_patch_mean else "")
            groups[name] = FeatureGroup(number, use_patch_mean, max(num_layers), hidden_size)
    return groups


def blocks_and_width(model: nn.Module) -> tuple[int, int]:
    """The number of blocks of a model and its hidden size; `ValueError` where it does not say."""
    config = getattr(model, "config", None)
    blocks, hidden_size = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if blocks is None or hidden_size is None:
        raise ValueError(
            f"the model ({type(model).__name__}) has no config.num_hidden_layers and config.hidden_size, which the"
            " linear protocol needs: its classifiers read the last blocks of a vision transformer."
        )
    return blocks, hidden_size


def write_grid(found: dict[Choice, float], folder: Path, labels: MatchedLabels) -> None:
    """`grid.json` and `linear.png`: the accuracy of every classifier."""
    curves = {}
    for choice, accuracy in found.items():
        curves.setdefault(choice.features, {})[choice.learning_rate] = accuracy
    entries = [
        {"features": choice.features, "learning_rate": choice.learning_rate, "top1": accuracy}
        for choice, accuracy in found.items()
    ]
    write_text(folder / "grid.json", json.dumps(entries, indent=2) + "\n")
    with picture_beside_numbers(folder / "linear.png"):
        draw_curves(
            curves, folder / "linear.png", x="learning rate", y="top-1 accuracy", log_x=True,
            title=f"Linear classifiers, {len(labels.eval)} images",
            baselines={"always the most frequent class": labels.most_frequent_share()},
        )  # fmt: skip
