"""Features to search by cosine similarity: normalised, or whitened by the principal components of a database."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...features import extract_features


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
    check_pca_dimensions(pca_dimensions, len(database), model, names[0])
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


def check_pca_dimensions(pca_dimensions: int | None, num_images: int, model: nn.Module, name: str) -> None:
    """`ValueError` where the features of so many images have no so many principal components."""
    if pca_dimensions is None:
        return
    width = getattr(model.config, "hidden_size", num_images)  # pixels, whose number depends on the image processor
    largest = min(num_images, width)
    if not 1 <= pca_dimensions <= largest:
        raise ValueError(
            f"`pca_dimensions` is {pca_dimensions}, but must be from 1 to {largest}, the smaller of the {name}'s"
            f" {num_images} images and the features' {width} channels."
        )


def similarities(database: Tensor, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of queries and their similarities (rows, n) to the whole database, 256 queries at a time."""
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        # An autocast around the call would compute the similarities in half precision.
        with torch.autocast(queries.device.type, enabled=False):
            yield rows, queries[rows] @ database.T
