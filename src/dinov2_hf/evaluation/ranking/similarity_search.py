"""Features for a search by cosine similarity: normalised, or whitened by the principal components of a database."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...cosines import centred, cosines_less_one
from ...features import DatasetOrRows, FeatureExtractor
from ..protocols import check_extra


QUERIES_AT_ONCE = 256


def searchable_features(
    extractor: FeatureExtractor,
    database: DatasetOrRows,
    queries: DatasetOrRows,
    *,
    pca_dimensions: int | None = None,
    names: tuple[str, str] = ("database", "query"),
) -> tuple[Tensor, Tensor]:
    """The CLS features of two datasets, of length 1.

    Args:
        pca_dimensions: keep as many principal components of the database's features, each scaled to the same variance
            (whitening). None: the features themselves.
        names: names of the two datasets, for the progress bars.

    Returns:
        (n, D) and (Q, D) float32, on the device of the model.

    Raises:
        ValueError: as `FeatureExtractor.features`; a feature is not finite; or `pca_dimensions` is out of range.
    """
    features = []
    for dataset, name in ((database, names[0]), (queries, names[1])):
        found = extractor.features(dataset, description=f"Extracting {name} features").values
        if not found.isfinite().all():
            raise ValueError(f"the {name} features are not all finite; the model that made them may have diverged.")
        features.append(normalize(found, dim=1))
    if pca_dimensions is not None:
        from sklearn.decomposition import PCA

        pca = PCA(pca_dimensions, whiten=True, svd_solver="full").fit(features[0].double().numpy())
        whitened = (torch.from_numpy(pca.transform(found.double().numpy())) for found in features)
        features = [normalize(found, dim=1).float() for found in whitened]
    return features[0].to(extractor.device), features[1].to(extractor.device)


def check_pca_dimensions(
    extractor: FeatureExtractor, pca_dimensions: int | None, num_images: int, name: str, protocol: str
) -> None:
    """`ValueError` if the features of this number of images do not have that many principal components.

    Raises:
        ImportError: scikit-learn, which computes the components, is not installed.
    """
    if pca_dimensions is None:
        return
    check_extra("sklearn", f"{protocol} with `pca_dimensions`")
    # For pixels, the number depends on the image processor.
    width = getattr(extractor.model.config, "hidden_size", num_images)
    largest = min(num_images, width)
    if not 1 <= pca_dimensions <= largest:
        raise ValueError(
            f"`pca_dimensions` is {pca_dimensions}, but must be from 1 to {largest}, the smaller of the {name}'s"
            f" {num_images} images and the features' {width} channels."
        )


def similarities(database: Tensor, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of queries and their cosines minus 1, (rows, n), with the whole database, 256 queries at a time."""
    centre = database.mean(dim=0)
    others = centred(database, centre)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        rows = slice(start, start + QUERIES_AT_ONCE)
        yield rows, cosines_less_one(centred(queries[rows], centre), others)
