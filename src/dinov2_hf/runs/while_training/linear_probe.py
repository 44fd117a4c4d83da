"""A linear probe of a backbone during training: classifiers on features of labelled images, computed once."""

from dataclasses import dataclass
from typing import ClassVar

from accelerate.utils import gather_object

from ...evaluation.cosine_neighbors import check_finite
from ...evaluation.linear import KIND, evaluate_linear
from ...features import FeatureExtractor
from .labelled_images import LabelledImages


# The probe must take seconds, and be the same at every step. It has larger batches and fewer steps than the protocol,
# uses only the last block, and the larger learning rates that few steps need.
NUM_STEPS, BATCH_SIZE, GRID, NUM_LAYERS = 1000, 256, "paper", 1


@dataclass
class LinearEvaluation:
    """One of `evaluation_while_training`."""

    name: ClassVar[str] = "linear"
    images: LabelledImages
    every: int

    def __str__(self) -> str:
        return f"linear probe of {self.images}"

    def measure(self, extractor: FeatureExtractor) -> dict[str, float]:
        """Top-1 and top-5 accuracy of the best of 26 classifiers: CLS token or with the mean patch, 13 learning rates.

        Processes share the images. The main process trains for all, so the numbers equal those of one process.
        """
        bank, queries = self.images.bank, self.images.queries
        kind = {"kind": KIND, "num_layers": NUM_LAYERS}
        found = extractor.features(bank, skip_undecodable=True, **kind)
        check_finite(found.values, "the features of the bank")
        check_finite(extractor.features(queries, **kind).values, "the features to classify")
        metrics = None
        if extractor.is_main_process:
            metrics = evaluate_linear(
                extractor.alone(),
                bank,
                queries,
                label_column=self.images.label_column,
                grid=GRID,
                num_layers=(NUM_LAYERS,),
                num_steps=NUM_STEPS,
                train_batch_size=min(BATCH_SIZE, len(found.rows)),
                cache_features=True,
            )
        (metrics, *_) = gather_object([metrics])
        return {name: value for name, value in metrics.items() if name.startswith("linear_top")}
