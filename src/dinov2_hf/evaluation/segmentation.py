"""Linear semantic segmentation on frozen features (paper section 7.4, appendix B.2).

Batch norm and a 1 x 1 convolution on the final-normed patches of the last block ("linear"), or of the last four with
larger images and test-time augmentation ("multiscale", the paper's "+ms").

Shapes: `B` images, `K` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torchvision.transforms.v2.functional import resize

from ..atomic_files import check_new_folder
from ..feature_kinds import num_blocks
from ..features import DatasetOrRows, FeatureExtractor
from ..models import DINOv2ForSemanticSegmentation
from ..models.modeling_dinov2_heads import DINOv2SegmentationHead
from ..pictures.masks_and_depths import draw_masks
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE, SEEDS
from .dense.head_training import learning_rate_factor, linear_decay, seeded, train_head
from .dense.mask_metrics import mask_metrics
from .dense.measured_head import train_and_measure
from .dense.patch_features import check_image_size, segmentation_features
from .dense.pixel_pairs import (
    PixelNormalization,
    check_train_batch_size,
    image_processor_for,
    pairs_to_measure,
    training_batches,
)
from .dense.segmentation_augmentation import SegmentationCrop
from .dense.segmentation_masks import MaskedImages
from .dense.sliding_window import augmented_probabilities, sliding_window_logits
from .metrics import Metrics, listed
from .protocols import check_extra, protocol
from .saved_heads import head_config, save_head
from .unmeasured_heads import training_settings


@dataclass(frozen=True)
class HeadRules:
    """The differences between the two heads of the paper."""

    num_layers: int
    image_size: int
    stride_ratio: float
    train_scale_range: tuple[float, float]
    test_scales: tuple[float, ...]
    test_flip: bool


HEADS = {
    "linear": HeadRules(1, 512, 341 / 512, (0.5, 2.0), (1.0,), False),
    "multiscale": HeadRules(4, 640, 320 / 640, (1.0, 3.0), (1.0, 1.32, 1.73, 2.28, 3.0), True),
}


@protocol(
    "segmentation", task="image-segmentation", metrics={"segmentation_miou": "mean_iou"}, requires="torchmetrics"
)
def evaluate_segmentation(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    head: Literal["linear", "multiscale"] = "linear",
    mask_column: str = "annotation",
    class_names: Sequence[str] | None = None,
    ignore_index: int = 255,
    do_reduce_labels: bool = False,
    image_size: int | None = None,
    num_steps: Annotated[int, AT_LEAST_ONE] = 40_000,
    learning_rate: Annotated[float, NOT_NEGATIVE] = 1e-3,
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4,
    warmup_steps: Annotated[int | None, NOT_NEGATIVE] = None,
    train_scale_range: tuple[float, float] | None = None,
    test_scales: Sequence[float] | None = None,
    seed: Annotated[int, SEEDS] = 0,
    train_batch_size: int = 16,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Train a segmentation head on the masks of `train_dataset` and measure it on those of `eval_dataset`.

    Every mask is read before the training, and refused if it has a number that is not a class. Every image of the
    evaluation data is read too. A training image that cannot be decoded is replaced by the next one. Images are
    enlarged or reduced so that their short side is `image_size`, so small images are not an error.

    Args:
        extractor: the frozen model, and how it is run. Its image processor gives the mean and deviation of the pixels;
            its sizes are not used. Windows of a test image in a forward pass are its `batch_size`, or else 8.
        head: "linear" (last block, 512 pixels) or "multiscale" (last four, 640, five scales and both flips in the
            test).
        mask_column: a class number for each pixel: images of one channel or of a palette, or arrays (H, W).
        class_names: in the order of their numbers. None: as many as the training masks use.
        ignore_index: the number of pixels that do not count.
        do_reduce_labels: 0 in the masks does not count, and class c is stored as c + 1 (ADE20K).
        image_size: short side of the images and side of the training crops and sliding windows, in pixels. None: the
            head's.
        num_steps: of training; the learning rate falls to 0 over them.
        learning_rate: of AdamW after the warm-up, before the decay.
        weight_decay: of AdamW, on all parameters of the head.
        warmup_steps: None: 3.75 % of `num_steps`, 1,500 of 40,000.
        train_scale_range: of the random ratio of a training image's short side to `image_size`. None: the head's.
        test_scales: ratios at which a test image is seen. None: the head's.
        seed: of the head's weights, and of the order and augmentation of the training images.
        train_batch_size: images of a training step, over all processes.
        output_dir: a folder for `model` (a `DINOv2ForSemanticSegmentation` with its image processor, where the model
            is a `DINOv2Model`), which is written before the measurement, and `segmentation.png`, masks beside the
            truth. While the head is not measured, it is in `unmeasured_head.safetensors` too, and the next call with
            the same arguments does not train it again.

    Returns:
        In [0, 1]: `segmentation_miou`, the mean intersection over union of the classes that occur in the evaluation
        masks or predictions, with pixels summed over all images; `segmentation_mean_accuracy` over the classes in
        those masks; `segmentation_pixel_accuracy`; and `segmentation_iou_{class}` for each class that occurs in
        either.

    Raises:
        ValueError: a column is missing, an image or mask cannot be decoded or they differ in size, a mask holds an
            unknown number, there are fewer than two classes, `image_size` is smaller than a patch, an option is out of
            range, or the model takes images of another number of channels.
    """
    check_extra("torchmetrics", "segmentation")
    rules, model = HEADS[head], extractor.model
    image_size = rules.image_size if image_size is None else image_size
    check_image_size(image_size, model, "image_size")
    scales = rules.test_scales if test_scales is None else tuple(test_scales)
    scale_range = rules.train_scale_range if train_scale_range is None else tuple(train_scale_range)
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1] < inf:
        raise ValueError(
            f"`train_scale_range` is {listed(scale_range)}, but must be two ratios above 0, the smaller one first."
        )
    if not scales or not all(0 < scale < inf for scale in scales):
        raise ValueError(f"`test_scales` is {listed(scales)}, but must be ratios above 0.")
    if class_names is not None and len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise ValueError(f"`class_names` has {twice!r} twice, but results are stored by name; use different names.")
    if num_blocks(model) < rules.num_layers:
        raise ValueError(f"`head` {head} reads {rules.num_layers} blocks, but the model has {num_blocks(model)}.")
    normalize = PixelNormalization(extractor.image_processor, extractor.num_channels)
    masks = MaskedImages.of(
        extractor, train_dataset, eval_dataset, mask_column=mask_column, ignore_index=ignore_index,
        do_reduce_labels=do_reduce_labels,
    )  # fmt: skip
    check_train_batch_size(extractor, train_batch_size, len(train_dataset))
    if output_dir is not None:
        check_new_folder(Path(output_dir) / "model", "model", overwrite=True)
    extractor.begin()

    warmup_steps = num_steps * 1500 // 40_000 if warmup_steps is None else warmup_steps
    batches = training_batches(
        extractor,
        masks.train,
        SegmentationCrop(image_size, scale_range, ignore_index, normalize),
        train_batch_size=train_batch_size,
        seed=seed,
    )
    masks.train[0]  # channels and sizes that do not fit fail here
    names = masks.read_classes(class_names)
    config = head_config(
        model,
        id2label=names,
        segmentation_num_layers=rules.num_layers,
        semantic_loss_ignore_index=ignore_index,
    )
    with seeded(seed):
        decode_head = _new_head(config, extractor).to(extractor.device)

    def logits_of(pixel_values: Tensor, size: Sequence[int]) -> Tensor:
        with extractor.frozen():
            features = segmentation_features(model, pixel_values, rules.num_layers).float()
        return interpolate(decode_head(features), size, mode="bilinear", align_corners=False)

    def batch_loss(pixel_values: Tensor, labels: Tensor, step: int) -> Tensor:
        # The loss of a batch without a labelled pixel is 0, not NaN.
        logits = logits_of(pixel_values, labels.shape[-2:])
        total = cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
        return total / (labels != ignore_index).sum().clamp(min=1)

    windows_of = partial(
        sliding_window_logits,
        lambda windows: logits_of(windows, windows.shape[-2:]),
        window=image_size,
        stride=max(1, round(image_size * rules.stride_ratio)),
        batch_size=extractor.batch_size or 8,
    )

    @torch.no_grad()
    def predict(image: Tensor) -> Tensor:
        sizes = [max(1, round(image_size * scale)) for scale in scales]
        resized = (normalize(resize(image.to(extractor.device), [size], antialias=True)) for size in sizes)
        height, width = image.shape[-2:]
        return augmented_probabilities(windows_of, resized, (height, width), rules.test_flip).argmax(dim=0)

    def save(folder: Path) -> None:
        # Bilinear, as in this protocol.
        processor = image_processor_for(
            extractor.image_processor, do_resize=True, size={"shortest_edge": image_size}, resample=2
        )
        head = decode_head.state_dict()
        save_head(DINOv2ForSemanticSegmentation, model, "decode_head", head, config, processor, folder)

    settings = training_settings(
        extractor, train_dataset, head=head, mask_column=mask_column, class_names=names, ignore_index=ignore_index,
        do_reduce_labels=do_reduce_labels, image_size=image_size, num_steps=num_steps, learning_rate=learning_rate,
        weight_decay=weight_decay, warmup_steps=warmup_steps, train_scale_range=list(scale_range), seed=seed,
        train_batch_size=train_batch_size,
    )  # fmt: skip
    findings = {
        "image_size": image_size, "test_scales": list(scales), "train_scale_range": list(scale_range),
        "warmup_steps": warmup_steps, "class_names": names, "num_classes": len(names),
    }  # fmt: skip
    return train_and_measure(
        "segmentation",
        extractor,
        decode_head,
        train=lambda: train_head(
            extractor,
            decode_head,
            batch_loss,
            batches,
            torch.optim.AdamW(decode_head.parameters(), lr=learning_rate, weight_decay=weight_decay),
            num_steps=num_steps,
            learning_rate_factor=lambda step: learning_rate_factor(
                step, num_steps, decay=linear_decay, warmup_steps=warmup_steps, warmup_ratio=1e-6
            ),
        ),
        save=save,
        measure=lambda: _measure(extractor, predict, masks.eval, names, ignore_index),
        draw=partial(draw_masks, names=names, ignore_index=ignore_index),
        settings=settings,
        findings=findings,
        output_dir=output_dir,
    )


def _new_head(config: Any, extractor: FeatureExtractor) -> nn.Module:
    head = DINOv2SegmentationHead(config)
    nn.init.normal_(head.conv_seg.weight, std=0.01)
    if head.conv_seg.bias is not None:
        nn.init.zeros_(head.conv_seg.bias)
    if extractor.world_size > 1 and extractor.device_type == "cuda":  # other devices have none
        return nn.SyncBatchNorm.convert_sync_batchnorm(head)
    return head


def _measure(extractor, predict, pairs, names, ignore_index):
    """The metrics, and a few images with their masks as (image, truth, prediction)."""
    from torchmetrics.classification import MulticlassConfusionMatrix  # slow to import

    # Summed by hand below, because a training around it may be distributed while the evaluation is not.
    confusion = MulticlassConfusionMatrix(len(names), ignore_index=ignore_index, sync_on_compute=False)
    confusion.to(extractor.device)
    pictures = []
    for image, mask, drawn in pairs_to_measure(extractor, pairs, "Segmenting"):
        prediction = predict(image)
        confusion.update(prediction.unsqueeze(0), mask.unsqueeze(0).to(extractor.device))
        if drawn:
            pictures.append((image, mask, prediction.cpu()))
    counts = confusion.compute()
    if extractor.processes is not None:
        counts = reduce(counts, "sum")
    hits, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    return mask_metrics("segmentation", torch.stack([hits, truth, predicted]).cpu(), names), pictures
