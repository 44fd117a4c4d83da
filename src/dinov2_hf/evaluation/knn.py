"""k-NN classification on frozen features (paper section 7).

The protocol of the reference: cosine similarity of L2-normalised CLS features in fp32. The weights of an image's
neighbours are the softmax of their similarities divided by the temperature, over the `max(ks)` nearest neighbours,
whatever k is scored. The score of a class is the sum of the weights of its members among the k nearest.

Shapes: `Q` query images, `n` bank images, `D` feature size, `C` classes.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from ..features import DatasetOrRows, FeatureExtractor
from ..pictures.figures import draw_beside_numbers, draw_curves
from ..value_ranges import AT_LEAST_ONE
from .classification.labelled_features import labelled_features
from .classification.labels import match_labels
from .cosine_neighbors import check_finite, cosine_neighbors
from .metrics import Metrics, listed
from .protocols import folder_of_main, protocol


# Queries whose neighbours so far are kept while the bank is processed: 150 MiB for 200 neighbours.
_QUERIES_PER_PASS = 65536


@protocol("knn", task="image-classification", metrics={"knn_top1": "accuracy"})
def evaluate_knn(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    label_column: str = "label",
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    shots: Sequence[int] = (),
    num_tries: Annotated[int, AT_LEAST_ONE] = 5,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Classify `eval_dataset` by the neighbours of its images in `train_dataset`, the bank.

    A bank image that cannot be decoded is left out, with a warning; an image to classify is never left out. Labels
    are matched by name, see `match_labels`.

    Args:
        extractor: the frozen model, and how it is run.
        train_dataset: the labelled images to compare with, usually the training split.
        eval_dataset: the labelled images to classify, usually the validation split.
        label_column: name of the column that holds the labels.
        ks: numbers of neighbours to score; the largest is at most the size of the bank.
        temperature: of the softmax over similarities, above 0.
        shots: images per class of few-shot banks, which are measured besides the whole bank. Of `ks`, those above
            the size of such a bank are left out for it.
        num_tries: few-shot banks of each size, drawn at random with the seeds 0, 1, ...
        output_dir: a folder for the plot `knn.png`. None: no plot.

    Returns:
        Accuracies in [0, 1]: `knn_top1_k{k}` for each k, and `knn_top5_k{k}` if there are more than 5 classes: the
        class is among the five best of the classes that a neighbour has (with k=1 there is one, and top-5 is top-1).
        For few-shot banks, the mean and the standard deviation over the tries, `knn_{n}shot_top1_k{k}` and `..._std`.

    Raises:
        ValueError: as `match_labels` or `FeatureExtractor.features`, or `ks`, `temperature`, `shots` or `num_tries` is
            out of range for the bank.
    """
    labels = match_labels(train_dataset, eval_dataset, label_column)
    _checked_ks(ks, len(labels.train))
    _check_temperature(temperature)
    _check_shots(shots, labels.train, labels.classes, ks)
    extractor.begin(train_dataset, eval_dataset)
    labels.warn_of_absent_classes()
    bank_features, bank_labels, _ = labelled_features(extractor, train_dataset, labels.train)
    if len(bank_labels) < len(labels.train):
        _checked_ks(ks, len(bank_labels))
        _check_shots(shots, bank_labels, labels.classes, ks)
    query_features = extractor.features(eval_dataset, description="Features of the images to classify").values

    def accuracies(bank_rows: Tensor | slice) -> dict[str, float]:
        bank = bank_labels[bank_rows]
        return _accuracies(
            extractor,
            bank_features[bank_rows],
            bank,
            query_features,
            labels.eval,
            num_classes=len(labels.classes),
            ks=_checked_ks([k for k in ks if k <= len(bank)], len(bank)),
            temperature=temperature,
        )

    chance = labels.most_frequent_share()
    metrics = Metrics(
        {f"knn_{name}": value for name, value in accuracies(slice(None)).items()},
        num_classes=len(labels.classes),
        num_bank_images=len(bank_labels),
        most_frequent_class_top1=chance,
    )
    for n in shots:
        tries = [accuracies(_few_shot_rows(bank_labels, n, seed)) for seed in range(num_tries)]
        for name in tries[0]:
            values = torch.tensor([one[name] for one in tries], dtype=torch.float64)
            metrics[f"knn_{n}shot_{name}"] = values.mean().item()
            metrics[f"knn_{n}shot_{name}_std"] = values.std(correction=0).item()
    banks = {"whole bank": "knn_top1", **{f"{n} images per class": f"knn_{n}shot_top1" for n in shots}}
    curves = {
        label: {k: metrics[f"{name}_k{k}"] for k in sorted(set(ks)) if f"{name}_k{k}" in metrics}
        for label, name in banks.items()
    }
    metrics.note_edge("k of `ks`", curves["whole bank"], lowest=1, highest=len(bank_labels))
    draw_beside_numbers(
        folder_of_main(extractor, output_dir), "knn.png", draw_curves, curves, x="neighbours k", y="top-1 accuracy",
        log_x=True, title=f"k-NN, {len(labels.eval)} images against {len(bank_labels)}",
        baselines={"always the most frequent class": chance},
    )  # fmt: skip
    return metrics


def _accuracies(
    extractor, bank_features, bank_labels, query_features, query_labels, *, num_classes, ks, temperature
) -> dict[str, float]:
    """`top1_k{k}` and `top5_k{k}`; each process classifies its share of the queries."""
    own, device = slice(extractor.rank, None, extractor.world_size), extractor.device
    query_labels = query_labels[own].to(device)
    topks = (1, 5) if num_classes > 5 else (1,)
    correct = {f"top{topk}_k{k}": 0 for topk in topks for k in ks}
    chunks = _score_chunks(
        bank_features,
        bank_labels.to(device),
        query_features[own],
        num_classes=num_classes,
        ks=ks,
        temperature=temperature,
        chunk_size=1024,
        device=device,
    )
    # In chunks, because the scores of all queries would be large with many classes.
    for rows, scores in chunks:
        for k in ks:
            # A stable order, so that equal scores rank the same on every device.
            ranked = scores[k].sort(dim=1, descending=True, stable=True)
            # A class that no neighbour has is not a prediction, even if few classes have votes.
            hits = (ranked.indices == query_labels[rows, None]) & (ranked.values > 0)
            for topk in topks:
                correct[f"top{topk}_k{k}"] += int(hits[:, :topk].sum())
    shares = [(correct, len(query_labels))]
    if extractor.processes is not None:
        shares = gather_object(shares)
    num_queries = sum(count for _, count in shares)
    return {name: sum(share[name] for share, _ in shares) / num_queries for name in correct}


def _few_shot_rows(labels: Tensor, n: int, seed: int) -> Tensor:
    """Rows of `n` images of every class, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        drawn.append(rows[torch.randperm(len(rows), generator=generator)[:n]])
    return torch.cat(drawn)


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

    Runs in fp32 on the device of the queries. It never holds more similarities than those of `chunk_size` queries and
    16 * `chunk_size` bank rows, nor more of the bank than these rows.

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
        bank_labels.to(query_features.device),
        query_features,
        num_classes=num_classes,
        ks=ks,
        temperature=temperature,
        chunk_size=chunk_size,
        device=query_features.device,
    )
    scores = {k: torch.empty(len(query_features), num_classes, device=query_features.device) for k in ks}
    for rows, of_chunk in chunks:
        for k in ks:
            scores[k][rows] = of_chunk[k]
    return scores


def _score_chunks(
    bank_features, bank_labels, query_features, *, num_classes, ks, temperature, chunk_size, device
) -> Iterator[tuple[slice, dict[int, Tensor]]]:
    check_finite(bank_features, "bank_features")
    check_finite(query_features, "query_features")
    for first in range(0, len(query_features), _QUERIES_PER_PASS):
        queries = F.normalize(query_features[first : first + _QUERIES_PER_PASS].to(device, torch.float32), dim=1)
        similarities, neighbors = cosine_neighbors(bank_features, queries, ks[-1], chunk_size)
        for start in range(0, len(queries), chunk_size):
            weights = (similarities[start : start + chunk_size] / temperature).softmax(dim=1)
            # At a low temperature, distant neighbours would underflow to 0 and have no vote.
            weights = weights.clamp_min(torch.finfo(weights.dtype).tiny)
            labels = bank_labels[neighbors[start : start + chunk_size]].long()
            yield slice(first + start, first + start + len(weights)), _vote(weights, labels, num_classes, ks)


def _vote(weights: Tensor, labels: Tensor, num_classes: int, ks: list[int]) -> dict[int, Tensor]:
    """Class scores (Q, C) after the first k neighbours, for each k, from (Q, max k) weights and labels."""
    scores = weights.new_zeros(len(weights), num_classes)
    scores_at = {}
    # One neighbour at a time: every k is a prefix, and no two additions go to the same cell, so the sums on a GPU are
    # reproducible.
    for rank in range(ks[-1]):
        scores.scatter_add_(1, labels[:, rank : rank + 1], weights[:, rank : rank + 1])
        if rank + 1 in ks:
            scores_at[rank + 1] = scores.clone()
    return scores_at


def _checked_ks(ks: Sequence[int], bank_size: int) -> list[int]:
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise ValueError(f"`ks` is {listed(ks)}, but must be numbers of neighbours, each at least 1.")
    if ks[-1] > bank_size:
        raise ValueError(
            f"`ks` asks for {ks[-1]} neighbours, but the bank has {bank_size} images; give smaller numbers or a larger"
            " bank."
        )
    return ks


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}, but must be a finite number above 0.")


def _check_shots(shots: Sequence[int], bank_labels: Tensor, classes: Sequence[Any], ks: Sequence[int]) -> None:
    if not shots:
        return
    counts = bank_labels.bincount(minlength=len(classes))
    counts[counts == 0] = len(bank_labels)  # a class without images, which is not evaluated either
    fewest = int(counts.argmin())
    if min(shots) < 1 or max(shots) > counts[fewest]:
        raise ValueError(
            f"`shots` is {listed(shots)}, but must lie between 1 and the {int(counts[fewest])} images that the class"
            f" {classes[fewest]!r} has in the bank."
        )
    smallest_bank = min(shots) * int((bank_labels.bincount() > 0).sum())
    if min(ks) > smallest_bank:
        raise ValueError(
            f"`shots` makes a bank of {smallest_bank} images, but the fewest neighbours of `ks` are {min(ks)}; give a"
            " smaller number of neighbours."
        )
