"""Instance retrieval with frozen features (paper section 7.3): mAP as for the revisited Oxford and Paris, and GAP.

Images are ranked by the cosine similarity of their CLS features. Shapes: `n` database images, `Q` queries.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.decoding.channels import image_decoder
from ..data.decoding.rgb import decode_image
from ..features import DatasetOrRows, FeatureExtractor, require_column
from ..pictures.figures import draw_beside_numbers
from ..pictures.nearest_images import draw_nearest_images, square_picture
from .metrics import Metrics
from .protocols import folder_of_main, protocol
from .ranking.average_precision import average_precision, micro_average_precision, precision_at
from .ranking.similarity_search import check_pca_dimensions, searchable_features, similarities
from .ranking.truth import (
    QueryTruth,
    check_kinds_of_labels,
    has_difficulties,
    instance_labels,
    truths_by_labels,
    truths_by_lists,
)


PRECISION_RANKS = (1, 5, 10)
NUM_PICTURES, NUM_NEIGHBORS = 6, 7


@protocol("retrieval", task="image-feature-extraction", metrics={"retrieval_map": "map"})
def evaluate_retrieval(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    label_column: str = "label",
    pca_dimensions: int | None = None,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Rank the images of `train_dataset`, the database, for each image of `eval_dataset`, the queries.

    Queries with the columns `easy`, `hard` and `junk` (rows of the database) are evaluated by the revisited protocol:
    "easy" should find the easy rows, "medium" the easy and hard rows, and "hard" the hard rows. The remaining lists
    are removed from the ranking. A column `bbx` (left, top, right, bottom in pixels) gives the part of a query that is
    used for the search. Other queries are evaluated by their labels: images with the same label are relevant.

    A query with nothing to find is left out of the mAP.

    Args:
        extractor: the frozen model, and how it is run.
        train_dataset: the database.
        eval_dataset: the queries.
        label_column: of the instance in an image, matched by name where it is a `ClassLabel`; None, or -1 of a
            `ClassLabel`, is a distractor. Not read where the queries have the lists.
        pca_dimensions: whiten to so many principal components of the database. None: no whitening.
        output_dir: a folder for `retrieval.png`, a few queries and what they found. None: no picture.

    Returns:
        In [0, 1]. By lists: for easy, medium and hard `retrieval_map_{...}` (see `average_precision`) and
        `retrieval_mp{k}_{...}`, the mean precision at 1, 5 and 10. By labels: `retrieval_map`, `retrieval_mp{k}`; and,
        with the nearest image of each query as its predicted instance, `retrieval_accuracy` over the queries whose
        label is in the database, `retrieval_gap`, the micro-AP of these predictions over all queries including
        distractors, and `retrieval_gap_no_distractors`.

    Raises:
        ValueError: a column is missing, lists or labels are wrong or nothing can be found, an image cannot be decoded,
            or `pca_dimensions` is out of range.
    """
    for dataset in (train_dataset, eval_dataset):
        require_column(dataset, extractor.image_column, "image_column")
    by_lists = has_difficulties(eval_dataset)
    if by_lists:
        truths = truths_by_lists(eval_dataset, len(train_dataset))
    else:
        database_labels, query_labels = (
            instance_labels(dataset, label_column) for dataset in (train_dataset, eval_dataset)
        )
        check_kinds_of_labels(database_labels, query_labels, label_column)
        truths = {"": truths_by_labels(database_labels, query_labels)}
    check_pca_dimensions(extractor, pca_dimensions, len(train_dataset), "database", "retrieval")
    extractor.begin()

    query_images = CroppedQueries.of(eval_dataset, extractor.image_column)
    database, queries = searchable_features(extractor, train_dataset, query_images, pca_dimensions=pca_dimensions)
    rankings, nearest_scores = rank(database, queries)
    metrics = Metrics()
    for difficulty, of_queries in truths.items():
        suffix = f"_{difficulty}" if difficulty else ""
        quality = ranking_quality(rankings, of_queries)
        metrics |= {f"retrieval_{name}{suffix}": value for name, value in quality.items()}
    if not by_lists:
        nearest, known = [database_labels[row] for row in rankings[:, 0]], set(database_labels) - {None}
        metrics |= recognition_quality(nearest, query_labels, known, nearest_scores)
        metrics.findings["num_classes"] = len(known)

    def draw(path: Path) -> None:
        drawn = range(0, len(queries), ceil(len(queries) / NUM_PICTURES))
        found = rankings[drawn, :NUM_NEIGHBORS].astype(np.int64)
        decode = image_decoder(extractor.num_channels)

        def pictures(dataset: Any, rows: Sequence[int]) -> list[Image.Image]:
            dataset = _unformatted(dataset)
            return [square_picture(decode(dataset[row][extractor.image_column])) for row in rows]

        labels = None
        if not by_lists:
            labels = [
                [str(query_labels[row]), *(str(database_labels[number]) for number in numbers)]
                for row, numbers in zip(drawn, found.tolist(), strict=True)
            ]
        draw_nearest_images(
            pictures(query_images, drawn),
            [pictures(train_dataset, rows) for rows in found.tolist()],
            (queries[drawn] @ database.T).cpu().gather(1, torch.from_numpy(found)),
            path,
            labels=labels,
        )

    draw_beside_numbers(folder_of_main(extractor, output_dir), "retrieval.png", draw)
    return metrics


def _unformatted(dataset: Any) -> Any:
    return dataset.with_format(None) if isinstance(dataset, datasets.Dataset) else dataset


class CroppedQueries(Sequence):
    """Rows of queries whose image is cut to the part that `bbx` gives."""

    def __init__(self, queries: Any, image_column: str):
        self.queries, self.image_column = queries, image_column

    @classmethod
    def of(cls, queries: Any, image_column: str) -> Any:
        """The cropped queries, or the queries themselves if they have no such column."""
        columns = queries.column_names if isinstance(queries, datasets.Dataset) else list(queries[0])
        if "bbx" not in columns:
            return queries
        return cls(_unformatted(queries), image_column)

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, row: Any) -> Any:
        values = self.queries[row]
        image = decode_image(values[self.image_column])
        if values["bbx"] is not None:
            left, top, right, bottom = (round(side) for side in values["bbx"])
            if not (0 <= left < right <= image.width + 1 and 0 <= top < bottom <= image.height + 1):
                raise ValueError(
                    f"bbx of query {row} is {list(values['bbx'])}, but must be left, top, right and bottom inside its"
                    f" image of {image.width} x {image.height} pixels."
                )
            image = image.crop((left, top, min(right, image.width), min(bottom, image.height)))
        return {self.image_column: image}


def rank(database: Tensor, queries: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """For each query all rows of the database, most similar first (Q, n), and the largest similarity (Q,)."""
    rankings = np.empty((len(queries), len(database)), dtype=np.int32)
    nearest = np.empty(len(queries), dtype=np.float32)
    for rows, scores in similarities(database, queries):
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rankings[rows], nearest[rows] = order.cpu().numpy(), scores[:, 0].cpu().numpy()
    return rankings, nearest


def ranking_quality(rankings: np.ndarray, truths: Sequence[QueryTruth]) -> dict[str, float]:
    """`map` and `mp1`, `mp5`, `mp10`, means over the queries that have something to find; empty if none has."""
    found = []
    for ranking, truth in zip(rankings, truths, strict=True):
        if len(truth.relevant):
            relevant = np.isin(ranking, truth.relevant)[~np.isin(ranking, truth.junk)]
            found.append([average_precision(relevant), *(precision_at(relevant, k) for k in PRECISION_RANKS)])
    if not found:
        return {}
    names = ("map", *(f"mp{k}" for k in PRECISION_RANKS))
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def recognition_quality(predicted: Sequence, labels: Sequence, known: set, scores: np.ndarray) -> dict[str, float]:
    """Accuracy and GAP of one prediction for each query.

    Args:
        predicted, labels: of the queries. A label that is not in `known` is a distractor: every prediction is wrong.
        known: labels of the database.
        scores: (Q,), confidence of the predictions.
    """
    correct = np.array([label in known and one == label for one, label in zip(predicted, labels, strict=True)])
    answerable = np.array([label in known for label in labels])
    return {
        "retrieval_accuracy": float(correct[answerable].mean()),
        "retrieval_gap": micro_average_precision(scores, correct, int(answerable.sum())),
        "retrieval_gap_no_distractors": micro_average_precision(
            scores[answerable], correct[answerable], int(answerable.sum())
        ),
    }
