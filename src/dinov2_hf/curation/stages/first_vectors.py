"""Vectors that an embedder makes in the first pass over images, which are in memory then anyway.

A shard of `ingest` holds them beside the facts of its images, with what they depend on. The stage that describes
images takes them from there. It makes vectors itself if they are missing, or were made by another embedder.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.decoded_images import process_images
from ...feature_kinds import FeatureKind
from ..embedders import Embedder
from .first_pass import ReadImage


VECTORS, ROWS, DECIDED_BY = "first_vectors.npy", "first_rows.npy", "first_vectors.json"


class FirstVectors:
    """Makes vectors of images as they come.

    Args:
        embedder: takes RGB pictures.
    """

    def __init__(self, embedder: Embedder):
        embedder.extractor.begin()
        self.embedder, self.batch_size = embedder, embedder.extractor.batch_size
        self.kind = FeatureKind(embedder.kind, 4)
        self._rows: list[int] = []
        self._waiting: list[Tensor] = []
        self._vectors: list[Tensor] = []

    @property
    def process(self) -> Callable:
        """Makes the input of the model from a list of pictures."""
        return self.embedder.extractor.image_processor

    def add(self, found: Sequence[tuple[int, ReadImage]]) -> None:
        """
        Args:
            found: rows and their images, as pictures or as what `process` made of them.
        """
        if not found:
            return
        self._rows += [row for row, _ in found]
        if found[0][1].pixel_values is not None:
            processed = [torch.from_numpy(image.pixel_values) for _, image in found]
        else:
            # Images that keep their shapes have batches of one, so they are processed alone too.
            parts = [found] if self.batch_size > 1 else [[one] for one in found]
            processed = [process_images(self.process, [image.image for _, image in part]) for part in parts]
            processed = [pixel_values for part in processed for pixel_values in part.split(1)]
        self._waiting += processed
        while len(self._waiting) >= self.batch_size:
            self._embed(self._waiting[: self.batch_size])
            del self._waiting[: self.batch_size]

    def save(self, folder: Path, decided_by: dict[str, Any]) -> None:
        """Write what was made to the folder of a shard."""
        if self._waiting:
            self._embed(self._waiting)
            self._waiting = []
        np.save(folder / ROWS, np.array(self._rows, dtype=np.int64))
        np.save(folder / VECTORS, torch.cat(self._vectors).numpy() if self._vectors else np.empty((0, 1), np.float32))
        (folder / DECIDED_BY).write_text(json.dumps(decided_by))

    def _embed(self, pixel_values: list[Tensor]) -> None:
        features, _ = self.embedder.extractor.of_batch(torch.cat(pixel_values), self.kind)
        self._vectors.append(features)


def first_vectors(folder: Path, decided_by: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(m,) rows and (m, D) vectors of a shard; m is 0 if it has no vectors that depend on exactly this."""
    try:
        if json.loads((folder / DECIDED_BY).read_text()) == json.loads(json.dumps(decided_by)):
            return np.load(folder / ROWS), np.load(folder / VECTORS, mmap_mode="r")
    except FileNotFoundError:
        pass
    return np.empty(0, np.int64), np.empty((0, 1), np.float32)
