"""Linear classification of frozen features (paper, section 7 and appendix B.3).

A grid of linear classifiers is trained together: on the CLS tokens of the last block or the last 4, with or without
the mean patch of the last block, each at 13 learning rates. The best one is reported.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..atomic_files import check_new_folder
from ..feature_kinds import FeatureKind, num_blocks, take_features
from ..features import DatasetOrRows, FeatureExtractor
from ..models import DINOv2ForImageClassification
from ..output_folders import write_text
from ..pictures.figures import draw_beside_numbers, draw_curves
from ..value_ranges import AT_LEAST_ONE, SEEDS
from .classification.augmented_images import crop_size_of, training_loader
from .classification.best_classifier import BestClassifier, GridTraining, train_best_classifier
from .classification.labelled_features import labelled_features, select_rows
from .classification.labels import MatchedLabels, match_labels
from .metrics import Metrics, listed
from .protocols import folder_of_main, protocol
from .saved_heads import head_config, save_head
from .unmeasured_heads import forget_unmeasured, training_settings


KIND = "last_layers_and_mean_patch"


@protocol("linear", task="image-classification", metrics={"linear_top1": "accuracy"})
def evaluate_linear(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    label_column: str = "label",
    grid: Literal["code", "paper"] = "code",
    num_layers: Sequence[int] | None = None,
    num_steps: Annotated[int, AT_LEAST_ONE] = 12500,
    train_batch_size: int = 128,
    cache_features: bool = False,
    validation_fraction: float = 0.0,
    seed: Annotated[int, SEEDS] = 0,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Train linear classifiers on `train_dataset`, and report the best on `eval_dataset`.

    Labels are matched by name, see `match_labels`. A training image that cannot be decoded is replaced by another, or
    left out of cached features; an image to classify is never left out.

    Args:
        extractor: the frozen model, and how it is run.
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
        output_dir: a folder for `model`, the best classifier with its backbone as a `DINOv2ForImageClassification`
            (of another model than `DINOv2Model`: the head alone), for `grid.json`, the accuracy of every classifier,
            and the plot `linear.png`. None: nothing is written. While the classifiers are not measured, they are in
            `unmeasured_head.safetensors`, and the next call with the same arguments does not train them again.

    Returns:
        The accuracies in [0, 1] of the best classifier on `eval_dataset`, `linear_top1` and, with more than 5 classes,
        `linear_top5`; and its choices, `linear_best_learning_rate` (before scaling), `linear_best_num_layers` and
        `linear_best_patch_mean` (0 or 1). With a validation split also `linear_validation_top1`.

    Raises:
        ValueError: as `match_labels` or `FeatureExtractor.features`, the model has fewer blocks than `num_layers` asks
            for, or an option is out of its range.
    """
    labels = match_labels(train_dataset, eval_dataset, label_column)
    if num_layers is None:
        num_layers = sorted({1, min(4, num_blocks(extractor.model))})
    groups = feature_groups(extractor.model, num_layers)
    training = GridTraining(grid, num_steps, train_batch_size, validation_fraction, seed)
    training.check(len(labels.train), extractor)
    if not cache_features:
        crop_size_of(extractor.image_processor)
    if output_dir is not None:
        check_new_folder(Path(output_dir) / "model", "model", overwrite=True)
    depth = max(num_layers)
    kind: dict[str, Any] = {"kind": KIND, "num_layers": depth}
    extractor.begin(eval_dataset, *([train_dataset] if cache_features else []), **kind)
    labels.warn_of_absent_classes()

    # Before the training, so that an image that cannot be decoded is known before hours of work.
    eval_features = extractor.features(eval_dataset, description="Features of the images to classify", **kind).values
    rows, validation_rows = training.split(len(labels.train))
    validation = eval_features[:0], labels.eval[:0]
    if cache_features:
        features, known, kept = labelled_features(extractor, train_dataset, labels.train, **kind)
        rows, held_out = (torch.isin(kept, some).nonzero()[:, 0] for some in (rows, validation_rows))
        validation = features[held_out], known[held_out]
        batches = training.cached_batches(features, known, rows, extractor)
    else:
        if len(validation_rows):
            images = select_rows(train_dataset, validation_rows)
            validation = labelled_features(extractor, images, labels.train[validation_rows], **kind)[:2]
        order = training.order(len(rows), extractor)
        seen = select_rows(train_dataset, rows) if len(validation_rows) else train_dataset
        loader = training_loader(extractor, seen, order)
        batches = augmented_batches(extractor, loader, labels.train[rows], FeatureKind(KIND, depth))
    settings = training_settings(
        extractor, train_dataset, label_column=label_column, classes=labels.classes, grid=grid,
        num_layers=list(num_layers), num_steps=num_steps, train_batch_size=train_batch_size,
        cache_features=cache_features, validation_fraction=validation_fraction, seed=seed,
    )  # fmt: skip
    whole, width = FeatureKind(KIND, depth), eval_features.shape[1]
    best = train_best_classifier(
        "linear", extractor, training, batches, {name: whole.columns(kind, width) for name, kind in groups.items()},
        eval_features, labels, validation, settings=settings, output_dir=output_dir,
    )  # fmt: skip
    reads = groups[best.choice.features]
    best.metrics["linear_best_num_layers"] = float(reads.num_layers)
    best.metrics["linear_best_patch_mean"] = float(reads.has_mean_patch)
    best.metrics.findings["num_layers"] = list(num_layers)
    folder = folder_of_main(extractor, output_dir)
    if folder is not None:
        save_best(extractor, best, reads, labels.classes, folder / "model")
        write_grid(best, folder, labels)
    forget_unmeasured(extractor, output_dir)
    return best.metrics


def augmented_batches(
    extractor: FeatureExtractor, loader: DataLoader, labels: Tensor, kind: FeatureKind
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, (num_layers + 1) * D) of the crops of a `training_loader`, and the labels of their rows."""
    for rows, pixel_values in loader:
        with extractor.frozen():
            pixel_values = pixel_values.to(extractor.device, non_blocking=True)
            features, _ = take_features(extractor.model, pixel_values, kind)
        yield features.float(), labels[rows].to(extractor.device)


def feature_groups(model: nn.Module, num_layers: Sequence[int]) -> dict[str, FeatureKind]:
    """The features that the groups of classifiers read, by name: last CLS tokens, without and with the mean patch.

    Raises:
        ValueError: the model has fewer blocks, or does not say how many.
    """
    blocks = num_blocks(model)
    if not num_layers or min(num_layers) < 1 or max(num_layers) > blocks:
        raise ValueError(
            f"`num_layers` is {listed(num_layers)}, but must be numbers from 1 to the {blocks} blocks of the model."
        )
    groups = {}
    for name, suffix in (("last_layers", ""), ("last_layers_and_mean_patch", ", mean patch")):
        for number in sorted(set(num_layers)):
            groups[f"CLS of {number} block{'s' if number > 1 else ''}{suffix}"] = FeatureKind(name, number)
    return groups


def save_best(
    extractor: FeatureExtractor, best: BestClassifier, reads: FeatureKind, classes: Sequence, folder: Path
) -> None:
    """Save the classifier with its backbone as a `DINOv2ForImageClassification`; for other models, only the head."""
    fields = {"num_layers": reads.num_layers, "use_patch_mean": reads.has_mean_patch}
    config = head_config(
        extractor.model, id2label=classes, **{f"classifier_{name}": value for name, value in fields.items()}
    )
    save_head(
        DINOv2ForImageClassification,
        extractor.model,
        "classifier",
        {"weight": best.weight, "bias": best.bias},
        config,
        extractor.image_processor,
        folder,
        reads={**fields, "id2label": config.id2label},
    )


def write_grid(best: BestClassifier, folder: Path, labels: MatchedLabels) -> None:
    """Write `grid.json` and `linear.png`: the accuracy of every classifier."""
    entries = [
        {"features": choice.features, "learning_rate": choice.learning_rate, "top1": accuracy}
        for choice, accuracy in best.found.items()
    ]
    write_text(folder / "grid.json", json.dumps(entries, indent=2) + "\n")
    draw_beside_numbers(
        folder, "linear.png", draw_curves, best.curves(), x="learning rate", y="top-1 accuracy", log_x=True,
        title=f"Linear classifiers, {len(labels.eval)} images",
        baselines={"always the most frequent class": labels.most_frequent_share()},
    )  # fmt: skip
