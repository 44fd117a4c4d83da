"""k-NN accuracy of a backbone during training: labelled images are classified by the CLS features of others."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from ...evaluation.baselines import PixelModel
from ...evaluation.knn import evaluate_knn
from ...features import FeatureExtractor
from .labelled_images import LabelledImages


KNN_NEIGHBOURS = (10, 20, 100, 200)
# For raw pixels: images are averaged down to this side, and a larger bank is not measured.
PIXELS_SIDE, MOST_PIXEL_BYTES = 32, 2**30


@dataclass
class KnnEvaluation:
    """One of `evaluation_while_training`."""

    name: ClassVar[str] = "knn"
    images: LabelledImages
    every: int

    def __str__(self) -> str:
        return f"k-NN of {self.images}"

    def raw_pixels(self, num_channels: int) -> nn.Module | None:
        """A model that gives raw pixels as features; `None` if the bank would take too much memory."""
        is_small = 4 * num_channels * PIXELS_SIDE**2 * len(self.images.bank) <= MOST_PIXEL_BYTES
        return PixelModel(num_channels, PIXELS_SIDE) if is_small else None

    def measure(self, extractor: FeatureExtractor) -> dict[str, float]:
        """Top-1 and top-5 accuracies, exactly those of one process and of `dinov2-hf evaluate`."""
        bank, queries = self.images.bank, self.images.queries
        ks = [k for k in KNN_NEIGHBOURS if k <= len(bank)] or [len(bank)]
        return evaluate_knn(extractor, bank, queries, label_column=self.images.label_column, ks=ks)
