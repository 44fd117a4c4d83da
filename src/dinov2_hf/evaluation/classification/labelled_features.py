"""Features of labelled images in memory, and parts of a dataset."""

import logging

import datasets
import torch
from torch import Tensor

from ...features import DatasetOrRows, FeatureExtractor


logger = logging.getLogger(__name__)


def labelled_features(
    extractor: FeatureExtractor, dataset: DatasetOrRows, labels: Tensor, *, kind: str = "cls", num_layers: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of training images and their labels; images that cannot be decoded are left out, with a warning.

    Args:
        labels: (n,), labels of all rows of `dataset`.
        kind, num_layers: as in `FeatureExtractor.features`.

    Returns:
        (m, ...) float32, (m,) and their rows (m,), on the CPU, for the m <= n rows that can be decoded.
    """
    found = extractor.features(
        dataset,
        kind=kind,
        num_layers=num_layers,
        skip_undecodable=True,
        description="Features of the training images",
    )
    left_out = list(found.undecodable_rows)
    if left_out:
        first = ", ".join(map(str, left_out[:5])) + (", ..." if len(left_out) > 5 else "")
        logger.warning(
            "%d training images cannot be decoded and are left out: rows %s (row %d: %s)",
            len(left_out), first, left_out[0], found.undecodable_rows[left_out[0]],
        )  # fmt: skip
    return found.values, labels[found.rows], found.rows


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


def select_rows(dataset: DatasetOrRows, rows: Tensor) -> DatasetOrRows:
    """A part of a dataset, of the same kind."""
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(rows.tolist())
    return [dataset[row] for row in rows.tolist()]
