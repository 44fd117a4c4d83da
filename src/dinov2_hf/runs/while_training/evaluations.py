"""
The evaluations of the backbones of a run, and their steps.

Each evaluation has a `name`: the protocol of `dinov2-hf evaluate` that gives the same number. The names of its metrics
begin with it. It has the steps between two evaluations, `every`, and `measure(extractor)`, which every process calls
and which returns the same metrics on all. Its `str` says what it measures.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from torch import nn

from ...features import FeatureExtractor
from ...models import DINOv2Config
from ...training.processes.sharded_weights import whole_copy
from ...training.students import prefixed
from ...training.tf32 import without_tf32
from ..pretraining_arguments import PreTrainingArguments
from .dense_probe import DenseEvaluation, load_dense_evaluation
from .knn_probe import KnnEvaluation
from .labelled_images import load_labelled_images
from .linear_probe import LinearEvaluation


if TYPE_CHECKING:
    from ..run import Run


class Evaluations:
    """
    The evaluations of a recipe. Iteration gives them in the order in which they are measured.

    Args:
        train_dataset: the bank of labelled images, if the recipe names no other.
        backbone: the network, for its channels and sizes.

    Raises:
        `ValueError`: images, labels or masks are missing or do not fit.
    """

    def __init__(self, args: PreTrainingArguments, train_dataset: Dataset | IterableDataset, backbone: DINOv2Config):
        self.labelled, self.dense = load_labelled_images(args, train_dataset), load_dense_evaluation(args, backbone)
        self._all: list[LinearEvaluation | KnnEvaluation | DenseEvaluation] = []
        if self.labelled and args.linear_eval_steps:  # first, because its features contain those of k-NN
            self._all.append(LinearEvaluation(self.labelled, args.linear_eval_steps))
        if self.labelled:
            self._all.append(KnnEvaluation(self.labelled, args.eval_steps))
        if self.dense:
            self._all.append(self.dense)

    def __iter__(self) -> Iterator[LinearEvaluation | KnnEvaluation | DenseEvaluation]:
        return iter(self._all)

    @property
    def names(self) -> list[str]:
        return [evaluation.name for evaluation in self]

    def due(self, is_due: Callable[[int], bool]) -> list[str]:
        """The names of the due evaluations; `is_due` decides by the steps between two."""
        return [evaluation.name for evaluation in self if is_due(evaluation.every)]

    def sizes(self) -> dict[str, int]:
        """Numbers of images, by the names of `DATA_SIZES`."""
        sizes = {}
        if self.labelled:
            sizes = {"eval_data": len(self.labelled.queries), "eval_bank_data": len(self.labelled.bank)}
        if self.dense:
            masks = self.dense.masks
            sizes |= {"dense_eval_data": len(masks.eval), "dense_eval_bank_data": len(masks.train)}
        return {f"{name} images": size for name, size in sizes.items()}

    def measure(self, run: "Run", names: list[str]) -> dict[str, dict[str, float]]:
        """
        The metrics of each evaluation, by name, for each backbone as it would be exported now. All processes share the
        images, and all get the numbers, which equal those of one process.

        They are measured in float32 whatever the precision of the run, as `dinov2-hf evaluate` measures the exported
        model.
        """
        found: dict[str, dict[str, float]] = {name: {} for name in names}
        for student, average in run.module.exported.items() if names else ():
            extractor = self._extractor(run, whole_copy(average.backbone))
            with without_tf32():
                for evaluation in self:
                    if evaluation.name in names:
                        found[evaluation.name] |= prefixed(evaluation.measure(extractor), student)
        return found

    def measure_pixels(self, run: "Run") -> dict[str, float] | None:
        """k-NN of raw pixels on the same images, the same for each student, if it can be measured at little cost."""
        for evaluation in self:
            if isinstance(evaluation, KnnEvaluation):
                pixels = evaluation.raw_pixels(run.config.backbone_config.num_channels)
                if pixels is not None:
                    with without_tf32():
                        metrics = evaluation.measure(self._extractor(run, pixels))
                    students = (prefixed(metrics, student) for student in run.module.exported)
                    return {name: value for of_student in students for name, value in of_student.items()}
        return None

    def _extractor(self, run: "Run", network: nn.Module) -> FeatureExtractor:
        return FeatureExtractor(
            network,
            run.image_processor,
            image_column=self.labelled.image_column if self.labelled else "image",
            batch_size=run.args.per_device_eval_batch_size,
            device=run.accelerator.device,
            num_workers=run.args.dataloader_num_workers,
            processes=PartialState(),
        )
