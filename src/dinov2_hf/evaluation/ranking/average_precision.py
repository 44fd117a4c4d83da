"""Quality of rankings: average precision with junk, and micro-AP over all queries together."""

import numpy as np


def average_precision(relevant: np.ndarray, num_relevant: int | None = None) -> float:
    """The area under one query's precision-recall curve, by trapezoids, as Oxford, Paris and their revisited versions
    compute it (Philbin et al. 2007, Radenovic et al. 2018). The plain mean of the precisions at the relevant ranks (as
    in scikit-learn) is equal or a little larger.

    Args:
        relevant: (n,) bool, best rank first; junk must already be removed.
        num_relevant: the number of relevant images to find. None: all that are in the ranking.

    Returns:
        In [0, 1]; NaN if there is nothing to find.
    """
    relevant = np.asarray(relevant, dtype=bool)
    ranks = np.flatnonzero(relevant)
    num_relevant = len(ranks) if num_relevant is None else num_relevant
    if num_relevant == 0:
        return float("nan")
    found = np.arange(len(ranks))
    # Just before a relevant rank r the precision is (found so far) / r, and 1 before the first rank.
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / 2 / num_relevant)


def precision_at(relevant: np.ndarray, k: int) -> float:
    """The share of relevant images among the first k. As in the revisited protocol, the ranking ends at the rank of
    the last relevant image, if that is before k.
    """
    ranks = np.flatnonzero(relevant)
    if len(ranks) == 0:
        return float("nan")
    k = min(k, int(ranks[-1]) + 1)
    return float(np.asarray(relevant[:k], dtype=bool).mean())


def precision_recall(scores: np.ndarray, correct: np.ndarray, num_positives: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each correct prediction of one list, best score first.

    Among equal scores, wrong predictions come first, so that a tie is never an advantage.

    Args:
        scores: (n,).
        correct: (n,) bool, c of them True.
        num_positives: the number of correct predictions if everything were found, at least 1.

    Returns:
        (c,) and (c,), in [0, 1].
    """
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=bool)
    correct = correct[np.lexsort((correct, -scores))]
    found = np.arange(1, correct.sum() + 1)
    return found / (np.flatnonzero(correct) + 1), found / num_positives


def micro_average_precision(scores: np.ndarray, correct: np.ndarray, num_positives: int) -> float:
    """The average precision of all predictions of all queries in one list: micro-AP of copy detection, and GAP of
    instance recognition. It needs scores that can be compared between queries.

    Args:
        scores, correct, num_positives: as in `precision_recall`.

    Returns:
        The sum of the precisions at the correct predictions over `num_positives`, in [0, 1].
    """
    precision, _ = precision_recall(scores, correct, num_positives)
    return float(precision.sum() / num_positives)
