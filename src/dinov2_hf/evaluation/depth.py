"""Monocular depth on frozen features (paper section 7.4, appendix B.2): linear heads on 1 or 4 layers, and DPT."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import interpolate

from ..atomic_files import check_new_folder
from ..feature_kinds import num_blocks
from ..features import DatasetOrRows, FeatureExtractor
from ..models.depth_layers import four_depth_layers
from ..pictures.masks_and_depths import draw_depths
from ..progress import Progress
from ..value_ranges import ABOVE_ZERO, AT_LEAST_ONE, NOT_NEGATIVE, SEEDS
from .dense.depth_benchmarks import BENCHMARKS, DepthBenchmark
from .dense.depth_heads import DPTDepth, LinearDepth, check_dpt, frozen_features
from .dense.depth_images import DepthCrop, decode_depth, judged_box, lower_middle
from .dense.depth_measures import SIGLOSS_WARMUP_STEPS, depth_metrics, sigloss
from .dense.head_training import (
    cosine_decay,
    learning_rate_factor,
    one_cycle_beta1,
    seeded,
    train_head,
)
from .dense.measured_head import train_and_measure
from .dense.patch_features import check_image_size, square_patch_size
from .dense.pixel_pairs import (
    PixelNormalization,
    PixelPairs,
    check_train_batch_size,
    pairs_to_measure,
    training_batches,
)
from .metrics import Metrics, listed
from .protocols import protocol
from .unmeasured_heads import training_settings


logger = logging.getLogger(__name__)

NUM_CHECKED_MAPS = 32


@protocol(
    "depth",
    task="depth-estimation",
    metrics={"depth_rmse": "rmse", "depth_abs_rel": "abs_rel", "depth_delta1": "delta1"},
)
def evaluate_depth(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    head: Literal["linear1", "linear4", "dpt"] = "linear1",
    depth_column: str = "depth_map",
    benchmark: Literal["nyu", "kitti", "none"] = "none",
    depth_scale: float | None = None,
    min_depth: float | None = None,
    max_depth: float | None = None,
    crop_size: tuple[int, int] | None = None,
    fusion_hidden_size: Annotated[int | None, AT_LEAST_ONE] = None,
    num_steps: Annotated[int, AT_LEAST_ONE] = 38_400,
    learning_rate: Annotated[float, NOT_NEGATIVE] = 1e-4,
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01,
    warmup_steps: Annotated[int | None, NOT_NEGATIVE] = None,
    max_grad_norm: Annotated[float, ABOVE_ZERO] = 35.0,
    seed: Annotated[int, SEEDS] = 0,
    train_batch_size: int = 16,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Train a depth head on the maps of `train_dataset` and measure it on those of `eval_dataset`.

    A pixel whose depth is 0 or below, infinite or NaN has no measurement and is ignored. So is a pixel above
    `max_depth`, or at most `min_depth`. An evaluation image without any valid pixel is left out of the averages, with
    a warning. A training image that cannot be decoded is replaced by the next one. Images are used at their own size.

    Args:
        extractor: the frozen model, and how it is run. Its image processor gives the mean and deviation of the pixels;
            its sizes are not used. Images to measure on pass one by one.
        head: "linear1" (last block), "linear4" (four blocks spread over the model), or "dpt" (transformers' own DPT on
            those four, of a `DINOv2Model`).
        depth_column: a depth for each pixel: images of one channel (16-bit PNG, float TIFF, ...), `.npy` files or
            arrays (H, W).
        benchmark: rules of `depth_benchmarks` for units, range, crops and colours; the options below replace theirs.
        depth_scale: stored numbers in one unit of depth.
        min_depth, max_depth: the range, in that unit.
        crop_size: (height, width) of the training crops in pixels; smaller images are padded.
        fusion_hidden_size: of "dpt" only, the channels of its fusion blocks. None: 256.
        num_steps: of training; the learning rate falls to 1e-8 of its peak over them, along a cosine.
        learning_rate: of AdamW, at its peak but for the decay.
        weight_decay: of AdamW, on all parameters of the head.
        warmup_steps: None: a third of `num_steps`, as 12,800 of 38,400.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the head's weights, and of the order and augmentation of the training images.
        train_batch_size: images of a training step, over all processes.
        output_dir: a folder for `model` (a `DINOv2ForDepthEstimation` where the model is a `DINOv2Model`, or a
            `DPTForDepthEstimation`, with its image processor), which is written before the measurement, and
            `depth.png`, maps beside the truth. While the head is not measured, it is in `unmeasured_head.safetensors`
            too, and the next call with the same arguments does not train it again.

    Returns:
        Means over the images of `depth_rmse` (in the unit of depth), `depth_abs_rel`, `depth_log10` and `depth_delta1`
        to `depth_delta3` (in [0, 1]); see `depth_metrics`. A prediction is the average over the image and its mirror
        image, clipped to the range.

    Raises:
        ValueError: a column is missing, an image or map cannot be decoded or they differ in size, more than half of
            the measured depths are out of the range, an image is smaller than a patch, an option is out of range, or
            the model takes images with another number of channels.
    """
    rules = _rules(benchmark, depth_scale, min_depth, max_depth, crop_size)
    if fusion_hidden_size is not None and head != "dpt":
        raise ValueError(f"`fusion_hidden_size` belongs to `head` dpt, but `head` is {head}; leave it out.")
    model, patch_size = extractor.model, square_patch_size(extractor.model)
    check_image_size(min(rules.crop_size), model, "crop_size")
    layers = [num_blocks(model) - 1] if head == "linear1" else four_depth_layers(num_blocks(model))
    if head == "dpt":
        check_dpt(model)
    normalize = PixelNormalization(extractor.image_processor, extractor.num_channels)
    decode = partial(decode_depth, depth_scale=rules.depth_scale)
    train_pairs, eval_pairs = (
        PixelPairs(
            dataset,
            image_column=extractor.image_column,
            num_channels=extractor.num_channels,
            map_column=depth_column,
            map_field="depth_column",
            decode_map=decode,
            source=source,
        )  # fmt: skip
        for dataset, source in ((train_dataset, "the training data"), (eval_dataset, "the evaluation data"))
    )
    check_train_batch_size(extractor, train_batch_size, len(train_dataset))
    if output_dir is not None:
        check_new_folder(Path(output_dir) / "model", "model", overwrite=True)
    extractor.begin()

    fusion_hidden_size = (fusion_hidden_size or 256) if head == "dpt" else None
    depth_head: DPTDepth | LinearDepth
    warmup_steps = num_steps // 3 if warmup_steps is None else warmup_steps
    batches = training_batches(
        extractor, train_pairs, DepthCrop(rules, normalize), train_batch_size=train_batch_size, seed=seed
    )
    few = range(0, len(train_pairs), ceil(len(train_pairs) / NUM_CHECKED_MAPS))
    check_depths(train_pairs, few, rules, patch_size, "training", extractor.progress)
    check_depths(eval_pairs, range(len(eval_pairs)), rules, patch_size, "evaluation", extractor.progress)
    with seeded(seed):
        if fusion_hidden_size is not None:
            depth_head = DPTDepth(model, layers, fusion_hidden_size)
        else:
            depth_head = LinearDepth(model, layers, rules.min_depth, rules.max_depth)
    depth_head.to(extractor.device)
    depth_head.module.train()

    def batch_loss(pixel_values: Tensor, depth: Tensor, step: int) -> Tensor:
        features = frozen_features(extractor, depth_head, pixel_values)
        prediction = _resized(depth_head.depth(features, pixel_values), depth.shape[-2:])
        valid = (depth > 0) & (depth <= rules.max_depth)
        return sigloss(prediction, depth, valid, warmup=step < min(SIGLOSS_WARMUP_STEPS, num_steps // 10))

    @torch.no_grad()
    def predict(image: Tensor) -> Tensor:
        pixel_values = normalize(image.to(extractor.device)).unsqueeze(0)
        both = []
        for mirrored in (pixel_values, pixel_values.flip(-1)):
            features = frozen_features(extractor, depth_head, mirrored)
            prediction = depth_head.depth(features, mirrored).clamp(rules.min_depth, rules.max_depth)
            both.append(_resized(prediction, image.shape[-2:])[0])
        return (both[0] + both[1].flip(-1)) / 2

    settings = training_settings(
        extractor, train_dataset, head=head, depth_column=depth_column, rules=asdict(rules),
        fusion_hidden_size=fusion_hidden_size, num_steps=num_steps, learning_rate=learning_rate,
        weight_decay=weight_decay, warmup_steps=warmup_steps, max_grad_norm=max_grad_norm, seed=seed,
        train_batch_size=train_batch_size,
    )  # fmt: skip
    findings = {
        "depth_scale": rules.depth_scale, "min_depth": rules.min_depth, "max_depth": rules.max_depth,
        "crop_size": list(rules.crop_size), "fusion_hidden_size": fusion_hidden_size, "warmup_steps": warmup_steps,
    }  # fmt: skip
    return train_and_measure(
        "depth",
        extractor,
        depth_head.module,
        train=lambda: train_head(
            extractor,
            depth_head.module,
            batch_loss,
            batches,
            torch.optim.AdamW(depth_head.module.parameters(), lr=learning_rate, weight_decay=weight_decay),
            num_steps=num_steps,
            learning_rate_factor=lambda step: learning_rate_factor(
                step, num_steps, decay=cosine_decay, warmup_steps=warmup_steps, warmup_ratio=1e-3, final_ratio=1e-8
            ),
            beta1=lambda step: one_cycle_beta1(step, num_steps),
            max_grad_norm=max_grad_norm,
        ),
        save=partial(depth_head.save, extractor.image_processor),
        measure=lambda: _measure(extractor, predict, eval_pairs, rules),
        draw=draw_depths,
        settings=settings,
        findings=findings,
        output_dir=output_dir,
    )


def _rules(benchmark, depth_scale, min_depth, max_depth, crop_size) -> DepthBenchmark:
    given = {"depth_scale": depth_scale, "min_depth": min_depth, "max_depth": max_depth}
    if crop_size is not None:
        if len(crop_size) != 2:
            raise ValueError(f"`crop_size` is {listed(crop_size)}, but must be two numbers, height and width.")
        given["crop_size"] = tuple(crop_size)
    rules = replace(BENCHMARKS[benchmark], **{name: value for name, value in given.items() if value is not None})
    if not rules.depth_scale > 0 or not 0 < rules.min_depth < rules.max_depth:
        raise ValueError(
            f"`depth_scale` is {rules.depth_scale}, `min_depth` {rules.min_depth} and `max_depth` {rules.max_depth},"
            " but all must be above 0, and `max_depth` above `min_depth`."
        )
    return rules


def check_depths(
    pairs: PixelPairs, rows: Sequence[int], rules: DepthBenchmark, patch_size: int, split: str, progress: bool
) -> None:
    """Check images and maps before anything is trained: all of the evaluation data, and up to 32 of the training data.

    Raises:
        ValueError: an image is smaller than a patch; no pixel has a depth; or more than half of the pixels with a
            depth are out of the range.
    """
    samples = []
    for row in Progress(rows, desc=f"Checking {split} depth", unit="map", disable=not progress):
        image, depth = pairs[row]
        if min(image.shape[-2:]) < patch_size:
            raise ValueError(
                f"row {row} of the {split} data is an image of {image.shape[-2]} x {image.shape[-1]} pixels, smaller"
                f" than a patch of the model ({patch_size} pixels); enlarge it or remove the row."
            )
        depth = depth.as_subclass(Tensor)
        samples.append(depth[depth > 0][::16])  # enough of them
    measured = torch.cat(samples)
    where = f"`depth_column` {pairs.map_column!r} of the {split} data"
    if not len(measured):
        raise ValueError(f"{where} holds no depth that is finite and above 0 in the {len(rows)} maps looked at.")
    inside = (measured > rules.min_depth) & (measured <= rules.max_depth)
    if inside.float().mean() < 0.5:
        raise ValueError(
            f"{where} holds depths from {measured.min():.4g} to {measured.max():.4g} (stored numbers over"
            f" `depth_scale` {rules.depth_scale:g}), of which {100 * inside.float().mean():.0f} % lie between"
            f" `min_depth` {rules.min_depth:g} and `max_depth` {rules.max_depth:g}; set these to the unit and range of"
            " the data."
        )
    if measured.max() < 0.02 * rules.max_depth:
        logger.warning(
            "%s holds depths up to %.4g, a small part of max_depth=%g; depth_scale=%g may not be theirs",
            where, measured.max(), rules.max_depth, rules.depth_scale,
        )  # fmt: skip


def _resized(depth: Tensor, size: torch.Size) -> Tensor:
    return interpolate(depth.unsqueeze(1), tuple(size), mode="bilinear", align_corners=False).squeeze(1)


def _measure(extractor, predict, pairs, rules):
    """The metrics, and a few images with their maps as (image, truth, prediction)."""
    found, pictures, left_out = [], [], 0
    for image, depth, drawn in pairs_to_measure(extractor, pairs, "Estimating depth"):
        image, depth = (lower_middle(one, rules.image_box_size) for one in (image, depth))
        judged = (depth > rules.min_depth) & (depth < rules.max_depth) & judged_box(depth, rules.evaluation_box)
        if not judged.any():
            left_out += 1
            continue
        prediction = predict(image).cpu()
        found.append(depth_metrics(prediction[judged], depth[judged]))
        if drawn:
            pictures.append((image, depth, prediction))
    if extractor.processes is not None:
        parts = gather_object([(found, left_out)])
        found = [one for part, _ in parts for one in part]
        left_out = sum(count for _, count in parts)
    if not found:
        raise ValueError("no image of the evaluation data has a pixel whose depth lies in the range.")
    if left_out:
        logger.warning("%d images have no pixel whose depth lies in the range, and are left out", left_out)
    return {f"depth_{name}": sum(one[name] for one in found) / len(found) for name in found[0]}, pictures
