"""A collection of images that can be searched by the features of a model."""

from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from datasets import Dataset
from PIL import Image

from ..data import UndecodableImage, image_decoder
from ..features import FeatureExtractor
from ..pictures.nearest_images import square_picture


@dataclass(frozen=True)
class Gallery:
    """
    Args:
        dataset: the images.
        extractor: makes the features of the images and of a query.
        index: an exact index of these features, of length 1, less `centre`. The cosine of two of them is
            1 - d^2 / 2 for their distance d. Their products would order images by rounding errors where all
            features are nearly the same, as those of a fresh network are.
        centre: (D,) the mean of the features.
        rows: the rows of the dataset in the index, whose images can be decoded.
    """

    dataset: Dataset
    extractor: FeatureExtractor
    index: Any
    centre: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def build_gallery(extractor: FeatureExtractor, dataset: Dataset) -> Gallery:
    """
    Make the features of all images; those that cannot be decoded are left out.

    Raises:
        ValueError: there is no image that can be decoded.
    """
    features = extractor.features(dataset, skip_undecodable=True)
    vectors = _unit(features.values.numpy())
    centre = vectors.mean(axis=0)
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors - centre)
    return Gallery(dataset, extractor, index, centre, features.rows.numpy())


def search(gallery: Gallery, image: Image.Image, count: int = 12) -> list[tuple[Image.Image, float]]:
    """The most similar images of a gallery, as square pictures, with the cosine of their CLS features."""
    column = gallery.extractor.image_column
    query = replace(gallery.extractor, progress=False, num_workers=0).features([{column: image}]).values.numpy()
    squares, places = gallery.index.search(_unit(query) - gallery.centre, min(count, len(gallery)))
    decode, found = image_decoder(3), []
    for square, place in zip(squares[0].tolist(), places[0].tolist(), strict=True):
        try:
            picture = square_picture(decode(gallery.dataset[int(gallery.rows[place])][column]))
        except UndecodableImage:  # its file has changed
            continue
        found.append((picture, 1 - square / 2))
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
