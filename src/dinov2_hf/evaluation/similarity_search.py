"""Features to search by cosine similarity: normalised, or whitened by the principal components of a database."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..features import extract_features


QUERIES_AT_ONCE = 256


def searchable_features(
    model: nn.Module,
    database: Any,
    queries: Any,
    image_processor: Any,
    *,
    pca_dimensions: int | None = None,
    names: tuple[str, str] = ("database", "query"),
    **extraction: Any,
) -> tuple[Tensor, Tensor]:
    """The CLS features of two datasets, of length 1.

    Args:
        pca_dimensions: keep as many principal components of the database's features, each scaled to the same variance
            (whitening). None: the features themselves.
        names: of the two, for the progress bars.
        extraction: as in `extract_features`.

    Returns:
        (n, D) and (Q, D) float32, on the device of the model.

    Raises:
        ValueError: what `extract_features` raises; a feature is not finite; or `pca_dimensions` is out of range.
    """
    if pca_dimensions is not None:
        largest = min(len(database), model.config.hidden_size)
        if not 1 <= pca_dimensions <= largest:
            raise ValueError(
                f"pca_dimensions={pca_dimensions} must be from 1 to {largest}, the smaller of the {names[0]}'s"
                f" {len(database)} images and the features' {model.config.hidden_size} channels."
            )
    features = []
    for dataset, name in ((database, names[0]), (queries, names[1])):
        found = extract_features(
            model, dataset, image_processor, description=f"Extracting {name} features", **extraction
        )
        if not found.isfinite().all():
            raise ValueError(f"the {name} features are not all finite; the model that made them may have diverged.")
        features.append(normalize(found, dim=1))
    if pca_dimensions is not None:
        from sklearn.decomposition import PCA

        pca = PCA(pca_dimensions, whiten=True, svd_solver="full").fit(features[0].double().numpy())
        whitened = (torch.from_numpy(pca.transform(found.double().numpy())) for found in features)
        features = [normalize(found, dim=1).float() for found in whitened]
    device = next(model.parameters()).device
    return features[0].to(device), features[1].to(device)


def similarities(database: Tensor, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of queries and their similarities (rows, n) to the whole database, 256 queries at a time."""
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        # An autocast around the call would compute the similarities in half precision.
        with torch.autocast(queries.device.type, enabled=False):
            yield rows, queries[rows] @ database.T
