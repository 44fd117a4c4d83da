"""
Measures the patch features of a backbone during training: segmentation by the nearest patches of other images. CLS
features do not show this: in long runs they improve while patch features get worse.
"""

import hashlib
import logging
import math
import re
from dataclasses import dataclass
from typing import ClassVar

from datasets import Dataset

from ...data import evaluation_split, find_image_column, load_image_dataset
from ...data.decoding.file_content import read_content
from ...evaluation.dense.segmentation_masks import MaskedImages
from ...evaluation.patch_knn import SOURCES, measure_patch_knn
from ...features import FeatureExtractor
from ...models import DINOv2Config
from ..pretraining_arguments import PreTrainingArguments


logger = logging.getLogger(__name__)


@dataclass
class DenseEvaluation:
    """One of `evaluation_while_training`."""

    name: ClassVar[str] = "patch_knn"
    masks: MaskedImages
    class_names: list[str]
    image_size: int
    every: int

    def __str__(self) -> str:
        return (
            f"patch k-NN of {len(self.masks.eval):,} images by the masks of {len(self.masks.train):,}"
            f" ({len(self.class_names)} classes, {self.image_size} pixels)"
        )

    def measure(self, extractor: FeatureExtractor) -> dict[str, float]:
        """Mean IoU, its standard error, and accuracies: exactly those of one process and of `dinov2-hf evaluate`."""
        metrics, _ = measure_patch_knn(extractor, self.masks, self.class_names, image_size=self.image_size)
        # One image has no standard error, and JSON has no NaN.
        shown = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return {name: value for name, value in shown.items() if not name.startswith("patch_knn_iou_")}


def load_dense_evaluation(args: PreTrainingArguments, backbone: DINOv2Config) -> DenseEvaluation | None:
    """
    Load the evaluation of `dense_eval_data`, or return `None` without it. Every image and mask of it is read.

    Raises:
        `ValueError`: there are no such images, columns or masks; a mask does not fit its image; or the images to
            segment are those of the bank.
    """
    if args.dense_eval_data is None:
        return None
    image_size = args.dense_eval_image_size or backbone.image_size
    if image_size < backbone.patch_size:
        raise ValueError(
            f"`dense_eval_image_size` is {image_size}, less than a patch ({backbone.patch_size} pixels); choose at"
            " least that."
        )
    try:
        split = args.dense_eval_split or evaluation_split(args.dense_eval_data, "--dense_eval_split")
        queries, image_column = _load(args.dense_eval_data, split, args)
        bank, bank_column = _load(args.dense_eval_bank_data or args.dense_eval_data, args.dense_eval_bank_split, args)
        if bank_column != image_column:
            bank = bank.rename_column(bank_column, image_column)
        queries, bank = (
            spread_rows(dataset, most)
            for dataset, most in ((queries, args.max_dense_eval_images), (bank, args.max_dense_eval_bank_images))
        )
        masks = MaskedImages(
            bank,
            queries,
            image_column=image_column,
            num_channels=backbone.num_channels,
            mask_column=args.dense_eval_mask_column,
            ignore_index=args.dense_eval_ignore_index,
            do_reduce_labels=args.dense_eval_do_reduce_labels,
            sources=SOURCES,
            num_workers=args.dataloader_num_workers,
        )
        names = masks.read_classes(None, open_set=True, with_train_images=True)
        _refuse_same_images(bank, queries, image_column)
    except ValueError as error:
        # The protocol's options, as a recipe calls them.
        said = re.sub(r"\b(image_column|mask_column|ignore_index)\b", r"dense_eval_\1", str(error))
        raise ValueError(said) from error
    return DenseEvaluation(masks, names, image_size, args.dense_eval_steps or args.eval_steps)


def _load(path: str, split: str, args: PreTrainingArguments) -> tuple[Dataset, str]:
    dataset = load_image_dataset(path, split=split, image_column=args.dense_eval_image_column)
    return dataset, find_image_column(dataset, args.dense_eval_image_column)


def spread_rows(dataset: Dataset, most: int | None) -> Dataset:
    """At most `most` rows, evenly spaced, because data sets are often sorted by scene."""
    if most is None or len(dataset) <= most:
        return dataset
    return dataset.select([number * len(dataset) // most for number in range(most)])


def _refuse_same_images(bank: Dataset, queries: Dataset, image_column: str) -> None:
    """Refuse images that are in the bank. They would match themselves, and the numbers would be meaninglessly high."""
    of_bank, of_queries = (
        [hashlib.sha256(read_content(row[image_column])).digest() for row in dataset.select_columns([image_column])]
        for dataset in (bank, queries)
    )
    known = set(of_bank)
    count = sum(one in known for one in of_queries)
    if count > len(queries) / 2:
        raise ValueError(
            f"`dense_eval_data` and its bank have {count} of {len(queries)} images in common, which would find"
            " themselves; give other images with masks as --dense_eval_bank_data, or another --dense_eval_bank_split."
        )
    if count:
        logger.warning(
            "%d of the %d images of dense_eval_data are in its bank too, and find themselves.", count, len(queries)
        )
