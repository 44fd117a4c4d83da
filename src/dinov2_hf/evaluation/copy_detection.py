"""Copy detection with frozen features: which images are edited copies of which, by micro-AP (Douze et al. 2021).

Pairs of a query and a reference image are scored by the cosine similarity of their CLS features.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..pictures.figures import draw_curves, picture_beside_numbers
from .extras import check_extras
from .findings import keep
from .ranking.metrics import micro_average_precision, precision_recall
from .ranking.similarity_search import check_pca_dimensions, searchable_features, similarities
from .ranking.truth import check_kinds_of_labels, instance_labels, truths_by_labels


def evaluate_copy_detection(
    model: nn.Module,
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    image_column: str = "image",
    label_column: str = "label",
    num_candidates: int = 10,
    pca_dimensions: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    progress: bool = False,
    processes: PartialState | None = None,
    output_dir: str | os.PathLike | None = None,
    findings: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Find the images of `train_dataset`, the references, that the images of `eval_dataset` are copies of.

    Args:
        model, image_processor, image_column, batch_size, num_workers, device, autocast_dtype, progress, processes:
            see `iterate_features`; the columns have the same names in both datasets.
        train_dataset: the references.
        eval_dataset: the queries.
        label_column: of the original; a query is a copy of the references with its label, and None, or -1 of a
            `ClassLabel`, is a copy of none.
        num_candidates: pairs that each query may give to the common list, its most similar references.
        pca_dimensions: whiten to so many principal components of the references. None: no whitening.
        output_dir: a folder for the plot `copy_detection.png`, precision against recall.
        findings: a mapping to be filled with what was found besides the metrics, see `findings`.

    Returns:
        In [0, 1]: `copy_detection_micro_ap`, the average precision of all pairs in one list;
        `copy_detection_recall_at_p90`, the largest recall at a precision of at least 0.9; and
        `copy_detection_recall_at_1`, the share of copies whose most similar reference is one of its originals.

    Raises:
        ValueError: a column is missing, labels are wrong or nothing can be found, an image cannot be decoded, or
            `num_candidates` or `pca_dimensions` is out of range.
    """
    check_extras("copy_detection", pca_dimensions=pca_dimensions)
    references, queries = check_copy_detection(
        model, train_dataset, eval_dataset, label_column=label_column, num_candidates=num_candidates,
        pca_dimensions=pca_dimensions,
    )  # fmt: skip
    keep(findings, num_classes=len(set(references) - {None}))
    truths = truths_by_labels(references, queries)
    features = searchable_features(
        model,
        train_dataset,
        eval_dataset,
        image_processor,
        pca_dimensions=pca_dimensions,
        names=("reference", "query"),
        image_column=image_column,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        autocast_dtype=autocast_dtype,
        progress=progress,
        processes=processes,
    )
    scores, candidates = [], []
    for _, found in similarities(*features):
        found, rows = found.topk(min(num_candidates, len(references)), dim=1)
        scores.append(found.cpu().numpy())
        candidates.append(rows.cpu().numpy())
    scores, candidates = np.concatenate(scores), np.concatenate(candidates)
    correct = np.stack([np.isin(rows, truth.relevant) for rows, truth in zip(candidates, truths, strict=True)])
    num_positives = sum(len(truth.relevant) for truth in truths)
    precision, recall = precision_recall(scores.ravel(), correct.ravel(), num_positives)
    if output_dir is not None and (processes is None or processes.is_main_process):
        path = Path(output_dir) / "copy_detection.png"
        # A point for each correct pair is more than anybody sees.
        shown = np.unique(np.linspace(0, len(precision) - 1, 200).astype(int))
        with picture_beside_numbers(path):
            draw_curves(
                {"pairs": dict(zip(recall[shown].tolist(), precision[shown].tolist(), strict=True))}, path,
                x="recall", y="precision",
                title=f"Copy detection, {len(queries)} queries against {len(references)} references",
            )  # fmt: skip
    is_copy = np.array([len(truth.relevant) > 0 for truth in truths])
    return {
        "copy_detection_micro_ap": micro_average_precision(scores.ravel(), correct.ravel(), num_positives),
        "copy_detection_recall_at_p90": float(recall[precision >= 0.9].max(initial=0.0)),
        "copy_detection_recall_at_1": float(correct[is_copy, 0].mean()),
    }


def check_copy_detection(
    model: nn.Module,
    train_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    eval_dataset: datasets.Dataset | Sequence[dict[str, Any]],
    *,
    label_column: str,
    num_candidates: int,
    pca_dimensions: int | None,
) -> tuple[list, list]:
    """What `evaluate_copy_detection` refuses before any work; the labels of references and queries."""
    references, queries = (instance_labels(dataset, label_column) for dataset in (train_dataset, eval_dataset))
    check_kinds_of_labels(references, queries, label_column)
    if num_candidates < 1:
        raise ValueError(f"`num_candidates` is {num_candidates}, but must be at least 1.")
    check_pca_dimensions(pca_dimensions, len(train_dataset), model, "reference")
    return references, queries
