"""k-NN accuracy of a backbone while it trains: of labelled images, by the CLS features of others."""

from dataclasses import dataclass
from typing import ClassVar

from ..evaluation.knn import evaluate_knn
from ..features import FeatureExtractor
from .labelled_images import LabelledImages


KNN_NEIGHBOURS = (10, 20, 100, 200)


@dataclass
class KnnEvaluation:
    """One of `evaluation_while_training`."""

    name: ClassVar[str] = "knn"
    images: LabelledImages
    every: int

    def __str__(self) -> str:
        return f"k-NN of {self.images}"

    def measure(self, extractor: FeatureExtractor) -> dict[str, float]:
        """Top-1 and top-5 accuracies, exactly those of one process and of `dinov2-hf evaluate`."""
        bank, queries = self.images.bank, self.images.queries
        ks = [k for k in KNN_NEIGHBOURS if k <= len(bank)] or [len(bank)]
        return evaluate_knn(extractor, bank, queries, label_column=self.images.label_column, ks=ks)
