"""k-NN classification on frozen features (paper section 7).

The protocol of the reference: cosine similarity of L2-normalised CLS features in fp32; the weights of an image's
neighbours are the softmax of their similarities over the temperature, taken over the `max(ks)` nearest neighbours
whatever k is scored; the score of a class is the sum of the weights of its members among the k nearest.

Shapes: `Q` query images, `n` bank images, `D` feature size, `C` classes.
"""

import logging
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import extract_features, require_column


logger = logging.getLogger(__name__)

# A wide tile of the similarity matrix keeps the number of top-k merges, and on a GPU of launches, small.
_BANK_ROWS_PER_QUERY = 16


def evaluate_knn(
    model: nn.Module,
    bank_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    query_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    image_column: str = "image",
    label_column: str = "label",
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Classify `query_dataset` by the neighbours of its images in `bank_dataset`.

    A bank image that cannot be decoded is left out, with a warning; a query is never left out.

    Labels are matched by name where both columns are a `ClassLabel`, and by value (integers or strings) otherwise.

    Args:
        model, image_processor, image_column, batch_size, device, autocast_dtype, num_workers, progress: see
            `extract_features`; the columns have the same names in both datasets.
        bank_dataset: the labelled images to compare with, usually the training split.
        query_dataset: the images to classify, usually the validation split.
        label_column: name of the column that holds the labels.
        ks: numbers of neighbours to score; the largest is at most the size of the bank.
        temperature: of the softmax over similarities, above 0.

    Returns:
        Accuracies in [0, 1]: `knn_top1_k{k}` for each k, and `knn_top5_k{k}` where there are more than 5 classes.

    Raises:
        ValueError: a column is missing, a row has no label, there is one class only, the bank lacks a class of the
            queries, `ks` or `temperature` is out of range, or what `extract_features` raises.
    """
    bank_labels, query_labels, num_classes = match_labels(bank_dataset, query_dataset, label_column)
    ks = _checked_ks(ks, len(bank_labels))
    _check_temperature(temperature)

    extraction = {
        "image_column": image_column,
        "batch_size": batch_size,
        "device": device,
        "autocast_dtype": autocast_dtype,
        "num_workers": num_workers,
        "progress": progress,
    }
    undecodable_rows = []
    bank_features = extract_features(
        model,
        bank_dataset,
        image_processor,
        description="Extracting bank features",
        undecodable_rows=undecodable_rows,
        **extraction,
    )
    if undecodable_rows:
        logger.warning("%d images of the bank cannot be decoded and are left out", len(undecodable_rows))
        kept = torch.ones(len(bank_labels), dtype=torch.bool)
        kept[undecodable_rows] = False
        bank_labels = bank_labels[kept]
        ks = _checked_ks(ks, len(bank_labels))
    query_features = extract_features(
        model, query_dataset, image_processor, description="Extracting query features", **extraction
    )

    device = next(model.parameters()).device
    query_labels = query_labels.to(device)
    topks = (1, 5) if num_classes > 5 else (1,)
    correct = {(topk, k): 0 for topk in topks for k in ks}
    chunks = _score_chunks(
        bank_features.to(device),
        bank_labels.to(device),
        query_features.to(device),
        num_classes=num_classes,
        ks=ks,
        temperature=temperature,
        chunk_size=1024,
    )
    # Chunk by chunk, because the scores of all queries would be large with many classes.
    for rows, scores in chunks:
        for k in ks:
            # A stable order, so that equal scores rank the same on every device.
            ranked = scores[k].argsort(dim=1, descending=True, stable=True)
            hits = ranked == query_labels[rows, None]
            for topk in topks:
                correct[topk, k] += int(hits[:, :topk].sum())
    return {f"knn_top{topk}_k{k}": count / len(query_labels) for (topk, k), count in correct.items()}


def knn_class_scores(
    bank_features: Tensor,
    bank_labels: Tensor,
    query_features: Tensor,
    *,
    num_classes: int,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> dict[int, Tensor]:
    """The score of every class for every query, for every number of neighbours.

    Runs in fp32 on the device of its inputs, and never holds more similarities than `chunk_size` queries against
    16 * `chunk_size` bank rows.

    Args:
        bank_features: (n, D), any scale.
        bank_labels: (n,) integers in [0, C).
        query_features: (Q, D), any scale.
        num_classes: C.
        ks: numbers of neighbours to score; the largest is at most n.
        temperature: of the softmax over similarities, above 0.
        chunk_size: queries scored at once, at least 1; it does not change the result.

    Returns:
        For each k, (Q, C) float32 scores in [0, 1]. They sum to 1 over the classes for the largest k, to less for
        the others.

    Raises:
        ValueError: an argument is out of its range, or a feature is not finite.
    """
    ks = _checked_ks(ks, len(bank_features))
    _check_temperature(temperature)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1.")
    if bank_labels.shape != bank_features.shape[:1]:
        raise ValueError(
            f"bank_labels has shape {tuple(bank_labels.shape)}, but one label for each of the "
            f"{len(bank_features)} rows of bank_features is needed."
        )
    if int(bank_labels.min()) < 0 or int(bank_labels.max()) >= num_classes:
        raise ValueError(
            f"bank_labels ranges from {int(bank_labels.min())} to {int(bank_labels.max())}, but must stay in "
            f"[0, num_classes={num_classes})."
        )
    chunks = _score_chunks(
        bank_features,
        bank_labels,
        query_features,
        num_classes=num_classes,
        ks=ks,
        temperature=temperature,
        chunk_size=chunk_size,
    )
    scores = [scores for _, scores in chunks]
    return {k: torch.cat([chunk[k] for chunk in scores]) for k in ks}


def _score_chunks(
    bank_features, bank_labels, query_features, *, num_classes, ks, temperature, chunk_size
) -> Iterator[tuple[slice, dict[int, Tensor]]]:
    bank = _normalized(bank_features, "bank_features")
    queries = _normalized(query_features, "query_features")
    for start in range(0, len(queries), chunk_size):
        rows = slice(start, start + chunk_size)
        similarities, neighbors = _nearest_neighbors(bank, queries[rows], ks[-1], _BANK_ROWS_PER_QUERY * chunk_size)
        weights = (similarities / temperature).softmax(dim=1)
        yield rows, _vote(weights, bank_labels[neighbors].long(), num_classes, ks)


def _normalized(features: Tensor, field: str) -> Tensor:
    features = features.float()
    finite_rows = features.isfinite().all(dim=1)
    if not finite_rows.all():
        raise ValueError(
            f"{field} has {int((~finite_rows).sum())} of {len(features)} rows with NaN or infinite values, but must "
            "be finite; the model that made them may have diverged."
        )
    return F.normalize(features, dim=1)


def _nearest_neighbors(bank: Tensor, queries: Tensor, k: int, bank_chunk: int) -> tuple[Tensor, Tensor]:
    """The `k` largest cosine similarities of each query, in descending order, and the bank rows they belong to."""
    similarities = queries.new_empty(len(queries), 0)
    neighbors = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), bank_chunk):
        # An autocast around the call would compute the similarities in half precision.
        with torch.autocast(queries.device.type, enabled=False):
            tile = queries @ bank[start : start + bank_chunk].T
        tile_similarities, tile_neighbors = tile.topk(min(k, tile.shape[1]), dim=1)
        similarities = torch.cat([similarities, tile_similarities], dim=1)
        neighbors = torch.cat([neighbors, tile_neighbors + start], dim=1)
        similarities, order = similarities.topk(min(k, similarities.shape[1]), dim=1)
        neighbors = neighbors.gather(1, order)
    return similarities, neighbors


def _vote(weights: Tensor, labels: Tensor, num_classes: int, ks: list[int]) -> dict[int, Tensor]:
    """Class scores (Q, C) after the first k neighbours, for each k, from (Q, max k) weights and labels."""
    scores = weights.new_zeros(len(weights), num_classes)
    scores_at = {}
    # One neighbour at a time: every k is a prefix, and no two additions meet in one cell, which makes the sums on a
    # GPU reproducible.
    for rank in range(ks[-1]):
        scores.scatter_add_(1, labels[:, rank : rank + 1], weights[:, rank : rank + 1])
        if rank + 1 in ks:
            scores_at[rank + 1] = scores.clone()
    return scores_at


def _checked_ks(ks: Sequence[int], bank_size: int) -> list[int]:
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise ValueError(f"ks={ks} must hold at least one number of neighbours, each at least 1.")
    if ks[-1] > bank_size:
        raise ValueError(
            f"ks={ks} asks for {ks[-1]} neighbours, but the bank has {bank_size} images: give smaller ks or a "
            "larger bank."
        )
    return ks


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0.")


def match_labels(bank_dataset, query_dataset, label_column: str) -> tuple[Tensor, Tensor, int]:
    """Class indices of bank and queries in one numbering, and the number of classes.

    Raises:
        ValueError: a label is missing, or the two do not fit together.
    """
    bank_labels, bank_names = _labels(bank_dataset, label_column)
    query_labels, query_names = _labels(query_dataset, label_column)
    if bank_names and query_names:
        bank_labels = _label_names(bank_labels, bank_names, label_column)
        query_labels = _label_names(query_labels, query_names, label_column)
        classes = bank_names
    else:
        classes = list(dict.fromkeys(bank_labels))
    if len(set(bank_labels)) < 2:
        raise ValueError(
            f"label_column={label_column!r} has the one class {bank_labels[0]!r} in the bank, but at least 2 are "
            "needed."
        )
    index = {label: i for i, label in enumerate(classes)}
    unknown = list(dict.fromkeys(label for label in query_labels if label not in index))
    if unknown:
        raise ValueError(
            f"label_column={label_column!r} has {len(unknown)} classes in the queries that the bank lacks "
            f"({', '.join(map(repr, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}): every query needs a class "
            "of the bank."
        )
    bank_indices = torch.tensor([index[label] for label in bank_labels])
    query_indices = torch.tensor([index[label] for label in query_labels])
    return bank_indices, query_indices, len(classes)


def _labels(dataset, label_column: str) -> tuple[list[int] | list[str], list[str] | None]:
    """The labels of a dataset as they are stored, and the class names if it has any."""
    require_column(dataset, label_column, "label_column")
    names = None
    if isinstance(dataset, datasets.Dataset):
        feature = dataset.features[label_column]
        names = feature.names if isinstance(feature, datasets.ClassLabel) else None
        values = dataset.with_format(None)[label_column][:]
    else:
        values = [row[label_column] for row in dataset]
    for row, value in enumerate(values):
        if not isinstance(value, Integral | str):
            raise ValueError(
                f"label_column={label_column!r} of row {row} is {value!r}, but must be an integer or a string."
            )
    return values, names


def _label_names(labels: list[int], names: list[str], label_column: str) -> list[str]:
    unlabelled = [row for row, label in enumerate(labels) if not 0 <= label < len(names)]
    if unlabelled:
        raise ValueError(
            f"label_column={label_column!r} of row {unlabelled[0]} is {labels[unlabelled[0]]}, but must be one of the "
            f"{len(names)} classes: remove the rows without a label."
        )
    return [names[label] for label in labels]
