"""Features of labelled images in memory, and parts of a dataset."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch import Tensor, nn

from ...features import extract_features


logger = logging.getLogger(__name__)


def labelled_features(
    model: nn.Module,
    dataset: datasets.Dataset | Sequence[dict[str, Any]],
    labels: Tensor,
    image_processor: Any,
    **extraction: Any,
) -> tuple[Tensor, Tensor]:
    """Features of training images and their labels; images that cannot be decoded are left out, with a warning.

    Args:
        labels: (n,), of all rows of `dataset`.
        extraction: as in `extract_features`.

    Returns:
        (m, ...) float32 and (m,) on the CPU, for the m <= n rows that can be decoded.
    """
    undecodable_rows = []
    features = extract_features(
        model,
        dataset,
        image_processor,
        description="Features of the training images",
        undecodable_rows=undecodable_rows,
        **extraction,
    )
    if undecodable_rows:
        first = ", ".join(map(str, undecodable_rows[:5])) + (", ..." if len(undecodable_rows) > 5 else "")
        logger.warning("%d training images cannot be decoded and are left out: rows %s", len(undecodable_rows), first)
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[undecodable_rows] = False
        labels = labels[kept]
    return features, labels


def random_split(num_rows: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to choose on, drawn at random; both ascending and neither empty.

    Raises:
        ValueError: `fraction` is not in (0, 1), or leaves one of the two empty.
    """
    count = round(num_rows * fraction) if 0 < fraction < 1 else 0
    if not 0 < count < num_rows:
        raise ValueError(
            f"`validation_fraction` is {fraction}, which leaves one side of {num_rows} training images empty; give a"
            " share between 0 and 1."
        )
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def select_rows(dataset: datasets.Dataset | Sequence[dict[str, Any]], rows: Tensor):
    """A part of a dataset, of the same kind."""
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(rows.tolist())
    return [dataset[row] for row in rows.tolist()]
