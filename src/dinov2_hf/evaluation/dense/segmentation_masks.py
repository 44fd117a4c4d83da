"""Masks of class numbers: decoding, and the check that every number is a class (before anything is trained)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...features import FeatureExtractor
from .pixel_pairs import PixelPairs, decode_map


def decode_mask(value: Any, ignore_index: int, do_reduce_labels: bool) -> np.ndarray:
    """One mask as class numbers.

    Args:
        value: as in `decode_map`; the indices of a palette are the classes.
        ignore_index: the number of pixels without a class.
        do_reduce_labels: 0 means without a class, and class c is stored as c + 1 (ADE20K).

    Returns:
        (H, W) int64.

    Raises:
        UndecodableImage: the file is broken, or holds colours in place of class numbers.
    """
    mask = decode_map(value, "iub", "class number")
    mask = mask.astype(np.int64)
    if do_reduce_labels:
        mask = np.where((mask == 0) | (mask == ignore_index), ignore_index, mask - 1)
    return mask


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
    extractor: FeatureExtractor, pairs: PixelPairs, *, with_images: bool, description: str
) -> list[dict[int, int]]:
    """For each row, how many pixels each class number has.

    Args:
        with_images: decode the images as well, so that one that cannot be fails here.
    """
    loader = DataLoader(
        _MaskIds(pairs, with_images),
        batch_size=None,
        num_workers=extractor.num_workers,
        generator=torch.Generator(),
        collate_fn=_as_it_is,
    )
    return list(tqdm(loader, desc=description, unit="mask", disable=not extractor.progress))


def _as_it_is(value: Any) -> Any:
    return value


def mask_classes(
    train_ids: Sequence[dict[int, int]],
    eval_ids: Sequence[dict[int, int]],
    *,
    class_names: Sequence[str] | None,
    ignore_index: int,
    mask_column: str,
) -> list[str]:
    """The names of the classes, after checking that the masks hold no others.

    Args:
        train_ids, eval_ids: of `count_ids`.
        class_names: in the order of their numbers; None: `LABEL_0`, ... up to the largest number in training.

    Raises:
        ValueError: a mask holds a number that is neither a class nor `ignore_index`, or there are fewer than two
            classes in training.
    """
    used = {number for ids in train_ids for number in ids} - {ignore_index}
    if len(used) < 2:
        raise ValueError(
            f"`mask_column` {mask_column!r} of the training data has {len(used)} classes besides"
            f" `ignore_index` {ignore_index}, but at least 2 are needed."
        )
    if class_names is None:
        class_names = [f"LABEL_{number}" for number in range(max(used) + 1)]
        source = "the numbers in the training masks"
    else:
        source = "`class_names`"
    known = {*range(len(class_names)), ignore_index}
    for split, rows in (("training", train_ids), ("evaluation", eval_ids)):
        for row, ids in enumerate(rows):
            unknown = sorted(set(ids) - known)
            if unknown:
                raise ValueError(
                    f"`mask_column` {mask_column!r} of row {row} of the {split} data holds the numbers"
                    f" {', '.join(map(str, unknown[:5]))}, but the classes ({source}) go from 0 to"
                    f" {len(class_names) - 1} and `ignore_index` is {ignore_index}; set `class_names` or"
                    " `ignore_index`, or repair the mask."
                )
    if not any(set(ids) - {ignore_index} for ids in eval_ids):
        raise ValueError(
            f"`mask_column` {mask_column!r} of the evaluation data holds nothing but `ignore_index` {ignore_index}."
        )
    return list(class_names)
