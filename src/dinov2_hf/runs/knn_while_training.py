"""k-NN accuracy of the backbones while they train: of labelled images, by the features of others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from accelerate import PartialState
from datasets import Dataset, IterableDataset

from ..data import evaluation_split, find_image_column, load_image_dataset
from ..evaluation.classification.labels import match_labels
from ..evaluation.knn import evaluate_knn
from ..features import FeatureExtractor
from ..training.sharded_weights import whole_copy
from ..training.students import prefixed
from ..training.tf32 import without_tf32
from .pretraining_arguments import PreTrainingArguments


if TYPE_CHECKING:
    from .run import Run

KNN_NEIGHBOURS = (10, 20, 100, 200)


@dataclass
class Evaluation:
    """Labelled images that a backbone is measured on: those of the bank classify the queries."""

    bank: Dataset
    queries: Dataset
    image_column: str


def load_evaluation(args: PreTrainingArguments, train_dataset: Dataset | IterableDataset) -> Evaluation | None:
    """
    What `eval_data` asks for, or `None` without it.

    Raises:
        `ValueError`: there are no such images, or no labels to classify with.
    """
    if args.eval_data is None:
        return None
    split = args.eval_split or evaluation_split(args.eval_data)
    queries = load_image_dataset(args.eval_data, split=split, image_column=args.image_column)
    bank = train_dataset
    if args.eval_bank_data is not None:
        bank = load_image_dataset(args.eval_bank_data, split=args.eval_bank_split, image_column=args.image_column)
    elif args.streaming or args.label_column not in train_dataset.column_names:
        raise ValueError(
            f"`eval_data` is {args.eval_data}, but `train_data` has no `{args.label_column}` column that could be held"
            " against it (a stream never has); give labelled images as --eval_bank_data."
        )
    image_column, bank_column = find_image_column(queries, args.image_column), find_image_column(bank)
    if bank_column != image_column:
        bank = bank.rename_column(bank_column, image_column)
    bank = bank.select(range(min(len(bank), args.max_eval_bank_images or len(bank))))
    queries = queries.select(range(min(len(queries), args.max_eval_images or len(queries))))
    match_labels(bank, queries, args.label_column)  # or it would complain in the middle of the run
    return Evaluation(bank, queries, image_column)


def measure(run: "Run") -> dict[str, float]:
    """
    k-NN accuracies of each backbone as it would be exported now. All processes share the images, and all get the
    numbers, which are those of one process.

    In float32 whatever the run trains in, as `dinov2-hf evaluate` measures the exported model.
    """
    metrics, evaluation, accelerator = {}, run.evaluation, run.accelerator
    for name, average in run.module.exported.items() if evaluation is not None else ():
        neighbours = [k for k in KNN_NEIGHBOURS if k <= len(evaluation.bank)]
        extractor = FeatureExtractor(
            whole_copy(average.backbone),
            run.image_processor,
            image_column=evaluation.image_column,
            batch_size=run.args.per_device_eval_batch_size,
            device=accelerator.device,
            num_workers=run.args.dataloader_num_workers,
            processes=PartialState(),
        )
        with without_tf32():
            accuracies = evaluate_knn(
                extractor,
                evaluation.bank,
                evaluation.queries,
                label_column=run.args.label_column,
                ks=neighbours or (len(evaluation.bank),),
            )
        metrics |= prefixed(accuracies, name)
    return metrics
