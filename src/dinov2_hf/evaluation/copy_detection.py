"""Copy detection with frozen features: which images are edited copies of which, by micro-AP (Douze et al. 2021).

Pairs of a query and a reference image are scored by the cosine similarity of their CLS features.
"""

from pathlib import Path
from typing import Annotated

import numpy as np

from ..features import DatasetOrRows, FeatureExtractor
from ..pictures.figures import draw_beside_numbers, draw_curves
from ..value_ranges import AT_LEAST_ONE
from .metrics import Metrics
from .protocols import folder_of_main, protocol
from .ranking.average_precision import micro_average_precision, precision_recall
from .ranking.similarity_search import check_pca_dimensions, searchable_features, similarities
from .ranking.truth import check_kinds_of_labels, instance_labels, truths_by_labels


@protocol("copy_detection", task="image-feature-extraction", metrics={"copy_detection_micro_ap": "micro_ap"})
def evaluate_copy_detection(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    label_column: str = "label",
    num_candidates: Annotated[int, AT_LEAST_ONE] = 10,
    pca_dimensions: int | None = None,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Find the images of `train_dataset`, the references, that the images of `eval_dataset` are copies of.

    Args:
        extractor: the frozen model, and how it is run.
        train_dataset: the references.
        eval_dataset: the queries.
        label_column: of the original; a query is a copy of the references with its label, and None, or -1 of a
            `ClassLabel`, is a copy of none.
        num_candidates: pairs that each query may give to the common list, its most similar references.
        pca_dimensions: whiten to so many principal components of the references. None: no whitening.
        output_dir: a folder for the plot `copy_detection.png`, precision against recall.

    Returns:
        In [0, 1]: `copy_detection_micro_ap`, the average precision of all pairs in one list;
        `copy_detection_recall_at_p90`, the largest recall at a precision of at least 0.9; and
        `copy_detection_recall_at_1`, the share of copies whose most similar reference is one of its originals.

    Raises:
        ValueError: a column is missing, labels are wrong or nothing can be found, an image cannot be decoded, or
            `num_candidates` or `pca_dimensions` is out of range.
    """
    references, queries = (instance_labels(dataset, label_column) for dataset in (train_dataset, eval_dataset))
    check_kinds_of_labels(references, queries, label_column)
    check_pca_dimensions(extractor, pca_dimensions, len(train_dataset), "reference", "copy_detection")
    extractor.begin(train_dataset, eval_dataset)

    truths = truths_by_labels(references, queries)
    features = searchable_features(
        extractor, train_dataset, eval_dataset, pca_dimensions=pca_dimensions, names=("reference", "query")
    )
    tiles = []
    for _, found in similarities(*features):
        tiles.append([part.cpu().numpy() for part in found.topk(min(num_candidates, len(references)), dim=1)])
    scores, candidates = (np.concatenate(parts) for parts in zip(*tiles, strict=True))
    correct = np.stack([np.isin(rows, truth.relevant) for rows, truth in zip(candidates, truths, strict=True)])
    num_positives = sum(len(truth.relevant) for truth in truths)
    precision, recall = precision_recall(scores.ravel(), correct.ravel(), num_positives)
    # A point for each correct pair would be more than one can see.
    shown = np.unique(np.linspace(0, len(precision) - 1, 200).astype(int))
    draw_beside_numbers(
        folder_of_main(extractor, output_dir), "copy_detection.png", draw_curves,
        {"pairs": dict(zip(recall[shown].tolist(), precision[shown].tolist(), strict=True))}, x="recall",
        y="precision", title=f"Copy detection, {len(queries)} queries against {len(references)} references",
    )  # fmt: skip
    is_copy = np.array([len(truth.relevant) > 0 for truth in truths])
    return Metrics(
        {
            "copy_detection_micro_ap": micro_average_precision(scores.ravel(), correct.ravel(), num_positives),
            "copy_detection_recall_at_p90": float(recall[precision >= 0.9].max(initial=0.0)),
            "copy_detection_recall_at_1": float(correct[is_copy, 0].mean()),
        },
        num_classes=len(set(references) - {None}),
    )
