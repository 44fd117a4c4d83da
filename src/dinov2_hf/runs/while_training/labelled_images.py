"""Labelled images for the evaluations of a run."""

from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from ...data import evaluation_split, find_image_column, load_image_dataset
from ...evaluation.classification.labels import match_labels
from ..pretraining_arguments import PreTrainingArguments


@dataclass
class LabelledImages:
    """A bank of images to learn from or compare with, and queries to classify."""

    bank: Dataset
    queries: Dataset
    image_column: str
    label_column: str

    def __str__(self) -> str:
        return f"{len(self.queries):,} images by the labels of {len(self.bank):,}"


def load_labelled_images(
    args: PreTrainingArguments, train_dataset: Dataset | IterableDataset
) -> LabelledImages | None:
    """
    Load the images of `eval_data`, or return `None` without it.

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
    match_labels(bank, queries, args.label_column)  # otherwise the error would come in the middle of the run
    return LabelledImages(bank, queries, image_column, args.label_column)
