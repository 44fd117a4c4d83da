"""Masks of class numbers: decoding, and the check that every number is a class (before anything is trained)."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...features import DatasetOrRows, FeatureExtractor
from ...progress import Progress
from .pixel_pairs import PixelPairs, decode_map


logger = logging.getLogger(__name__)
MAX_NUMBERED_CLASSES = 4096  # the whole of ADE20K has 3,688


def decode_mask(value: Any, ignore_index: int, do_reduce_labels: bool) -> np.ndarray:
    """One mask as class numbers.

    Args:
        value: as in `decode_map`; the indices of a palette are the classes.
        ignore_index: the number of pixels without a class.
        do_reduce_labels: 0 means that a pixel has no class, and class c is stored as c + 1 (ADE20K).

    Returns:
        (H, W) int64.

    Raises:
        UndecodableImage: the file is broken, or contains colours instead of class numbers.
    """
    mask = decode_map(value, "iub", "class number")
    mask = mask.astype(np.int64)
    if do_reduce_labels:
        mask = np.where((mask == 0) | (mask == ignore_index), ignore_index, mask - 1)
    return mask


class MaskedImages:
    """Images with masks of class numbers: some for training, some for evaluation.

    Args:
        train_dataset, eval_dataset: as in `PixelPairs`.
        image_column, num_channels: as in `PixelPairs`.
        mask_column: a class number for each pixel, see `decode_mask`.
        ignore_index, do_reduce_labels: as in `decode_mask`.
        sources: what messages call the two.
        num_workers: processes that read them; 0: this process.
        progress: show a bar while they are read.

    Attributes:
        train, eval: `PixelPairs`.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(
        self,
        train_dataset: DatasetOrRows,
        eval_dataset: DatasetOrRows,
        *,
        image_column: str,
        num_channels: int,
        mask_column: str,
        ignore_index: int,
        do_reduce_labels: bool,
        sources: tuple[str, str] = ("the training data", "the evaluation data"),
        num_workers: int = 0,
        progress: bool = False,
    ):
        self.mask_column, self.ignore_index, self.sources = mask_column, ignore_index, sources
        self.num_workers, self.progress = num_workers, progress
        self.train, self.eval = (
            PixelPairs(
                dataset,
                image_column=image_column,
                num_channels=num_channels,
                map_column=mask_column,
                map_field="mask_column",
                decode_map=partial(decode_mask, ignore_index=ignore_index, do_reduce_labels=do_reduce_labels),
                source=source,
            )
            for dataset, source in zip((train_dataset, eval_dataset), sources, strict=True)
        )

    @classmethod
    def of(
        cls, extractor: FeatureExtractor, train_dataset: DatasetOrRows, eval_dataset: DatasetOrRows, **masks: Any
    ) -> "MaskedImages":
        """The datasets of a protocol, read as its extractor reads images; `masks` are the other arguments."""
        return cls(
            train_dataset,
            eval_dataset,
            image_column=extractor.image_column,
            num_channels=extractor.num_channels,
            num_workers=extractor.num_workers,
            progress=extractor.progress,
            **masks,
        )

    def read_classes(
        self, class_names: Sequence[str] | None, *, open_set: bool = False, with_train_images: bool = False
    ) -> list[str]:
        """The names of the classes, after reading every mask and every image of the evaluation data.

        A warning names classes that are in no training mask.

        Args:
            class_names: in the order of their numbers; None: `LABEL_0`, ... up to the largest number.
            open_set: without names, numbers that occur only in evaluation masks are classes too.
            with_train_images: whether the training images are read as well, so that one that cannot be decoded is an
                error.

        Raises:
            ValueError: an image or mask cannot be decoded, they differ in size, or `mask_classes` raises it.
        """
        reading: dict[str, Any] = {"num_workers": self.num_workers, "progress": self.progress}
        train_ids = count_ids(self.train, with_images=with_train_images, **reading)
        eval_ids = count_ids(self.eval, with_images=True, **reading)
        names = mask_classes(
            train_ids,
            eval_ids,
            class_names=class_names,
            open_set=open_set,
            ignore_index=self.ignore_index,
            mask_column=self.mask_column,
            sources=self.sources,
        )
        learned, measured = ({number for ids in rows for number in ids} for rows in (train_ids, eval_ids))
        looked_for = range(len(names)) if class_names is not None else sorted(measured - {self.ignore_index})
        absent = [names[number] for number in looked_for if number not in learned]
        if absent:
            few = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
            logger.warning("no mask of %s has %s; their IoU can only be 0", self.sources[0], few)
        return names


class _MaskIds(Dataset):
    def __init__(self, pairs: PixelPairs, with_images: bool):
        self.pairs, self.with_images = pairs, with_images

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> dict[int, int]:
        ids, counts = torch.unique(
            self.pairs[row][1].as_subclass(torch.Tensor) if self.with_images else self.pairs.labels(row),
            return_counts=True,
        )
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def count_ids(
    pairs: PixelPairs, *, with_images: bool, num_workers: int = 0, progress: bool = False
) -> list[dict[int, int]]:
    """The number of pixels of each class number, for each row.

    Args:
        with_images: decode the images as well, so that one that cannot be decoded fails here.
        num_workers, progress: as in `FeatureExtractor`.
    """
    loader = DataLoader(
        _MaskIds(pairs, with_images),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
        collate_fn=_as_it_is,
    )
    description = f"Checking {'images and masks' if with_images else 'masks'} of {pairs.source}"
    return list(Progress(loader, desc=description, unit="mask", disable=not progress))


def _as_it_is(value: Any) -> Any:
    return value


def mask_classes(
    train_ids: Sequence[dict[int, int]],
    eval_ids: Sequence[dict[int, int]],
    *,
    class_names: Sequence[str] | None,
    open_set: bool,
    ignore_index: int,
    mask_column: str,
    sources: tuple[str, str],
) -> list[str]:
    """The names of the classes, after checking that the masks contain no others.

    Args:
        train_ids, eval_ids: results of `count_ids`.
        class_names: in the order of their numbers; None: `LABEL_0`, ... up to the largest number in training masks.
        open_set: up to the largest number in any mask instead.
        sources: what messages call the two.

    Raises:
        ValueError: a mask has a number that is neither a class nor `ignore_index`; there are fewer than two classes in
            training masks; or there are no names, and too many numbers for classes.
    """
    used = {number for ids in train_ids for number in ids} - {ignore_index}
    if len(used) < 2:
        raise ValueError(
            f"`mask_column` {mask_column!r} of {sources[0]} has {len(used)} classes besides"
            f" `ignore_index` {ignore_index}, but at least 2 are needed."
        )
    source, advice = "`class_names`", "`class_names` or `ignore_index`"
    if class_names is None:
        source = f"the numbers in the masks of {sources[0]}"
        if open_set:
            used |= {number for ids in eval_ids for number in ids} - {ignore_index}
            source, advice = "the numbers in all masks", "`ignore_index`"
        largest = max(used)
        if largest >= MAX_NUMBERED_CLASSES:
            raise ValueError(
                f"`mask_column` {mask_column!r} holds the number {largest}, but masks hold the numbers of at most"
                f" {MAX_NUMBERED_CLASSES} classes; set `ignore_index`, or give masks of class numbers."
            )
        class_names = [f"LABEL_{number}" for number in range(largest + 1)]
    known = {*range(len(class_names)), ignore_index}
    for data, rows in zip(sources, (train_ids, eval_ids), strict=True):
        for row, ids in enumerate(rows):
            unknown = sorted(set(ids) - known)
            if unknown:
                raise ValueError(
                    f"`mask_column` {mask_column!r} of row {row} of {data} holds the numbers"
                    f" {', '.join(map(str, unknown[:5]))}, but the classes ({source}) go from 0 to"
                    f" {len(class_names) - 1} and `ignore_index` is {ignore_index}; set {advice}, or repair the mask."
                )
    if not any(set(ids) - {ignore_index} for ids in eval_ids):
        raise ValueError(f"`mask_column` {mask_column!r} of {sources[1]} holds only `ignore_index` {ignore_index}.")
    return list(class_names)
