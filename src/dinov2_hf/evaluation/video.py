"""Action recognition: a linear classifier on the frozen features of some frames (paper, section 7.2)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import datasets
import torch
from torch import Tensor, nn

from ..data.decoding.video_frames import decode_frames
from ..data.reading.video_dataset import without_decoding
from ..features import DatasetOrRows, FeatureExtractor, image_features, process_images, require_column
from ..pictures.figures import draw_beside_numbers, draw_curves
from ..value_ranges import AT_LEAST_ONE, SEEDS
from .classification.best_classifier import GridTraining, train_best_classifier
from .classification.labelled_features import labelled_features
from .classification.labels import match_labels
from .metrics import Metrics
from .protocols import check_extra, folder_of_main, protocol
from .unmeasured_heads import forget_unmeasured, training_settings


@protocol("video", task="video-classification", metrics={"video_top1": "accuracy"})
def evaluate_video(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    video_column: str = "video",
    label_column: str = "label",
    num_frames: Annotated[int, AT_LEAST_ONE] = 8,
    frame_pooling: Literal["mean", "concatenate"] = "mean",
    grid: Literal["code", "paper"] = "code",
    num_steps: Annotated[int, AT_LEAST_ONE] = 12500,
    train_batch_size: int = 128,
    validation_fraction: float = 0.0,
    seed: Annotated[int, SEEDS] = 0,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Train linear classifiers on frames of videos, and report the best on `eval_dataset`.

    The feature of a video consists of the CLS tokens of evenly spaced frames, computed once, without augmentation.

    Args:
        extractor: the frozen model, and how it is run; videos in a forward pass are its `batch_size`, or else 8.
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
        output_dir: a folder for the plot `video.png`. None: no plot. While the classifiers are not measured, they are
            in `unmeasured_head.safetensors`, and the next call with the same arguments does not train them again.

    Returns:
        The accuracies in [0, 1] of the best learning rate on `eval_dataset`, `video_top1` and, with more than 5
        classes, `video_top5`; and `video_best_learning_rate`. With a validation split also `video_validation_top1`.

    Raises:
        ValueError: as `match_labels` or `FeatureExtractor.features`, or an option is out of its range.
    """
    for dataset in (train_dataset, eval_dataset):
        require_column(dataset, video_column, "video_column")
        if isinstance(dataset, datasets.Dataset):
            of_frames = isinstance(dataset.features[video_column], datasets.List | datasets.LargeList)
            check_extra(None if of_frames else "av", "video of files")
    labels = match_labels(train_dataset, eval_dataset, label_column)
    training = GridTraining(grid, num_steps, train_batch_size, validation_fraction, seed)
    training.check(len(labels.train), extractor)
    extractor.begin()
    labels.warn_of_absent_classes()

    of_videos = replace(
        extractor,
        model=FramesModel(extractor.model, concatenate=frame_pooling == "concatenate"),
        image_processor=partial(process_frames, extractor.image_processor),
        image_column=video_column,
        decode=partial(decode_frames, num_frames=num_frames),
        batch_size=extractor.batch_size or 8,
    )
    train_videos, eval_videos = (undecoded(dataset, video_column) for dataset in (train_dataset, eval_dataset))
    features, known, kept = labelled_features(of_videos, train_videos, labels.train)
    eval_features = of_videos.features(eval_videos, description="Features of the videos to classify").values
    rows, held_out = (torch.isin(kept, some).nonzero()[:, 0] for some in training.split(len(labels.train)))
    settings = training_settings(
        extractor, train_dataset, video_column=video_column, label_column=label_column, classes=labels.classes,
        num_frames=num_frames, frame_pooling=frame_pooling, grid=grid, num_steps=num_steps,
        train_batch_size=train_batch_size, validation_fraction=validation_fraction, seed=seed,
    )  # fmt: skip
    best = train_best_classifier(
        "video", extractor, training, training.cached_batches(features, known, rows, extractor),
        {"frames": slice(None)}, eval_features, labels, (features[held_out], known[held_out]), settings=settings,
        output_dir=output_dir,
    )  # fmt: skip
    draw_beside_numbers(
        folder_of_main(extractor, output_dir), "video.png", draw_curves, best.curves(), x="learning rate",
        y="top-1 accuracy", log_x=True, title=f"Linear classifiers, {len(labels.eval)} videos",
        baselines={"always the most frequent class": labels.most_frequent_share()},
    )  # fmt: skip
    forget_unmeasured(extractor, output_dir)
    return best.metrics


class FramesModel(nn.Module):
    """A model of images as a model of videos: `last_hidden_state` is one token, from the CLS tokens of the frames.

    Args:
        model: any model as in `image_features`.
        concatenate: keep the features of all frames, one after the other, instead of their mean.
    """

    def __init__(self, model: nn.Module, concatenate: bool):
        super().__init__()
        self.model, self.config, self.concatenate = model, getattr(model, "config", None), concatenate

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        """Frames (B, frames, C, H, W) to (B, 1, D), or (B, 1, frames * D)."""
        features = image_features(self.model, pixel_values.flatten(0, 1)).unflatten(0, pixel_values.shape[:2])
        features = features.flatten(1) if self.concatenate else features.mean(dim=1)
        return SimpleNamespace(last_hidden_state=features.unsqueeze(1))


def process_frames(image_processor: Any, images: Sequence[Sequence[Any]], return_tensors: str) -> dict[str, Tensor]:
    """Process videos, each a list with the same number of frames: `pixel_values` (B, frames, C, H, W)."""
    frames = [frame for video in images for frame in video]
    pixel_values = process_images(image_processor, frames)
    return {"pixel_values": pixel_values.unflatten(0, (len(images), -1))}


def undecoded(dataset, video_column: str):
    """The dataset with its videos as they are stored; a sequence of rows is not changed."""
    is_typed = isinstance(dataset, datasets.Dataset) and video_column in dataset.features
    return without_decoding(dataset, video_column) if is_typed else dataset
