"""Action recognition: a linear classifier on the frozen features of some frames (paper, section 7.2)."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import datasets
import torch
from accelerate import PartialState
from torch import Tensor, nn

from ..data.decoding.video_frames import decode_frames
from ..data.reading.video_dataset import without_decoding
from ..features import cls_features, extract_features, process_images, require_column
from ..pictures.figures import draw_curves, picture_beside_numbers
from .classification.classifier_grid import (
    LEARNING_RATES,
    ClassifierGrid,
    accuracies,
    best_choice,
    cached_batches,
    check_grid,
    train_grid,
    training_order,
)
from .classification.labelled_features import labelled_features, random_split
from .classification.labels import MatchedLabels, match_labels, warn_of_absent_classes
from .extras import check_extras
from .findings import keep, note_edge
from .fingerprints import training_settings
from .unmeasured_heads import forget_unmeasured, train_once


def evaluate_video(
    model: nn.Module,
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    video_column: str = "video",
    label_column: str = "label",
    num_frames: int = 8,
    frame_pooling: Literal["mean", "concatenate"] = "mean",
    grid: Literal["code", "paper"] = "code",
    num_steps: int = 12500,
    train_batch_size: int = 128,
    validation_fraction: float = 0.0,
    seed: int = 0,
    batch_size: int = 8,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
    processes: PartialState | None = None,
    output_dir: str | os.PathLike | None = None,
    findings: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Train linear classifiers on frames of videos, and report the best on `eval_dataset`.

    The feature of a video are the CLS tokens of evenly spaced frames, taken once, without augmentation.

    Args:
        model, image_processor, num_workers, device, autocast_dtype, progress, processes: see `iterate_features`.
        train_dataset: the labelled videos to learn from; those that cannot be decoded are left out, with a warning.
        eval_dataset: the labelled videos to classify.
        video_column: name of the column with video files (`datasets.Video`) or lists of frames, in both datasets.
        label_column: name of the column that holds the labels, matched by name, see `match_labels`.
        num_frames: frames of a video, see `decode_frames`.
        frame_pooling: "mean" averages their features (the paper's Kinetics-400 and UCF-101), "concatenate" keeps their
            order (its Something-Something v2).
        grid: 13 learning rates, of the original's "code" or of the "paper", as in the linear protocol.
        num_steps: steps of SGD, with a cosine to 0.
        train_batch_size: videos in a step, for each process.
        validation_fraction: share of the training videos to choose the learning rate on. 0: it is chosen on
            `eval_dataset` itself.
        seed: of the initial weights, the order and the validation split.
        batch_size: videos in a forward pass, each with all its frames.
        output_dir: a folder for the plot `video.png`. None: no plot. While the classifiers are not measured, they are
            in `unmeasured_head.safetensors`, and the next call with the same arguments does not train them again.
        findings: a mapping to be filled with what was found besides the metrics, see `findings`.

    Returns:
        Of the best learning rate the accuracies in [0, 1] on `eval_dataset`, `video_top1` and, with more than 5
        classes, `video_top5`; and `video_best_learning_rate`. With a validation split also `video_validation_top1`.

    Raises:
        ValueError: what `match_labels` or `extract_features` raises, or an option is out of its range.
    """
    labels = check_video(
        train_dataset, eval_dataset, video_column=video_column, label_column=label_column, num_frames=num_frames,
        grid=grid, num_steps=num_steps, train_batch_size=train_batch_size, validation_fraction=validation_fraction,
        seed=seed, processes=processes,
    )  # fmt: skip
    warn_of_absent_classes(labels)
    keep(findings, num_classes=len(labels.classes), most_frequent_class_top1=labels.most_frequent_share())
    frames_model = FramesModel(model, concatenate=frame_pooling == "concatenate")
    extraction = {
        "image_column": video_column,
        "decode": partial(decode_frames, num_frames=num_frames),
        "batch_size": batch_size,
        "device": device,
        "autocast_dtype": autocast_dtype,
        "num_workers": num_workers,
        "progress": progress,
        "processes": processes,
    }
    frames_processor = partial(process_frames, image_processor)
    features, train_labels = labelled_features(
        frames_model, undecoded(train_dataset, video_column), labels.train, frames_processor, **extraction
    )
    eval_features = extract_features(
        frames_model,
        undecoded(eval_dataset, video_column),
        frames_processor,
        description="Features of the videos to classify",
        **extraction,
    )
    validation_rows = None
    rows = torch.arange(len(train_labels))
    if validation_fraction:
        rows, validation_rows = random_split(len(train_labels), validation_fraction, seed)
    device = next(model.parameters()).device
    classifiers = ClassifierGrid(
        {"frames": slice(None)},
        LEARNING_RATES[grid],
        learning_rate_scale=train_batch_size * (processes.num_processes if processes is not None else 1) / 256,
        num_features=features.shape[1],
        num_classes=len(labels.classes),
        seed=seed,
        device=device,
        processes=processes,
    )
    order = training_order(len(rows), train_batch_size, seed=seed, processes=processes)
    settings = training_settings(
        model, train_dataset, image_processor, video_column=video_column, label_column=label_column,
        num_frames=num_frames, frame_pooling=frame_pooling, grid=grid, num_steps=num_steps,
        train_batch_size=train_batch_size, validation_fraction=validation_fraction, seed=seed,
        classes=labels.classes, precision=str(autocast_dtype),
        num_processes=1 if processes is None else processes.num_processes,
    )  # fmt: skip
    batches = cached_batches(features[rows], train_labels[rows], order, device)
    train_once(
        classifiers.tensors(),
        lambda: train_grid(classifiers, batches, num_steps, progress=progress),
        settings=settings,
        output_dir=output_dir,
        processes=processes,
    )
    found = accuracies(classifiers, eval_features, labels.eval)
    metrics, best, chosen_on = {}, best_choice(found), found
    if validation_rows is not None:
        chosen_on = accuracies(classifiers, features[validation_rows], train_labels[validation_rows])
        best = best_choice(chosen_on)
        metrics["video_validation_top1"] = chosen_on[best]
    metrics["video_top1"] = found[best]
    if len(labels.classes) > 5:
        metrics["video_top5"] = accuracies(classifiers, eval_features, labels.eval, topk=5)[best]
    metrics["video_best_learning_rate"] = best.learning_rate
    note_edge(findings, f"learning rate of `grid` {grid}", {c.learning_rate: value for c, value in chosen_on.items()})
    if output_dir is not None and (processes is None or processes.is_main_process):
        curve = {choice.learning_rate: accuracy for choice, accuracy in found.items()}
        path = Path(output_dir) / "video.png"
        with picture_beside_numbers(path):
            draw_curves(
                {"frames": curve}, path, x="learning rate", y="top-1 accuracy", log_x=True,
                title=f"Linear classifiers, {len(labels.eval)} videos",
                baselines={"always the most frequent class": labels.most_frequent_share()},
            )  # fmt: skip
    forget_unmeasured(output_dir, processes)
    return metrics


def check_video(
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    *,
    video_column: str,
    label_column: str,
    num_frames: int,
    grid: str,
    num_steps: int,
    train_batch_size: int,
    validation_fraction: float,
    seed: int,
    processes: PartialState | None,
) -> MatchedLabels:
    """What `evaluate_video` refuses before any work, and the labels."""
    for dataset in (train_dataset, eval_dataset):
        require_column(dataset, video_column, "video_column")
        if isinstance(dataset, datasets.Dataset):
            of_frames = isinstance(dataset.features[video_column], datasets.List | datasets.LargeList)
            check_extras("video", video_files=not of_frames)
    labels = match_labels(train_dataset, eval_dataset, label_column)
    for name, value in (("num_frames", num_frames), ("num_steps", num_steps)):
        if value < 1:
            raise ValueError(f"`{name}` is {value}, but must be at least 1.")
    check_grid(grid)
    num_rows = len(labels.train)
    if validation_fraction:
        num_rows = len(random_split(num_rows, validation_fraction, seed)[0])
    training_order(num_rows, train_batch_size, seed=seed, processes=processes)
    return labels


class FramesModel(nn.Module):
    """A model of images as one of videos: `last_hidden_state` holds one token, from the CLS tokens of the frames.

    Args:
        model: any model as in `cls_features`.
        concatenate: keep the features of all frames, one after the other, instead of their mean.
    """

    def __init__(self, model: nn.Module, concatenate: bool):
        super().__init__()
        self.model, self.config, self.concatenate = model, getattr(model, "config", None), concatenate

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Frames (B, frames, C, H, W) to (B, 1, D), or (B, 1, frames * D)."""
        features = cls_features(self.model, pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])
        features = features.flatten(1) if self.concatenate else features.mean(dim=1)
        return SimpleNamespace(last_hidden_state=features.unsqueeze(1))


def process_frames(image_processor: Any, images: Sequence[Sequence[Any]], return_tensors: str) -> dict[str, Tensor]:
    """An image processor of videos, each a list of as many frames: `pixel_values` (B, frames, C, H, W)."""
    frames = [frame for video in images for frame in video]
    pixel_values = process_images(image_processor, frames)
    return {"pixel_values": pixel_values.unflatten(0, (len(images), -1))}


def undecoded(dataset, video_column: str):
    """The dataset with its videos as they are stored; a sequence of rows is left as it is."""
    is_typed = isinstance(dataset, datasets.Dataset) and video_column in dataset.features
    return without_decoding(dataset, video_column) if is_typed else dataset
