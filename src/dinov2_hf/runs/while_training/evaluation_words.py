"""The evaluations of a run in words: how the progress line, the end of a run and the card call their numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """
    Of one evaluation.

    Args:
        title: in the progress line.
        main: of the metrics, the name of the one that stands for all, and what it is called.
        labels: the short name of a metric, `None` for one that is not shown.
        data, bank: the options of the images that are measured on, and of those that are learned from or compared
            with, where the recipe names any.
        described: the sentence above the numbers in the card; it has `data` and `bank`.
        task: its type on the Hub, and what it is called there.
        on_hub: the name of a metric there, from its short name.
    """

    title: str
    main: Callable[[Mapping[str, float]], tuple[str, str]]
    labels: Callable[[str], str | None]
    data: str
    bank: str
    described: str
    task: tuple[str, str]
    on_hub: str

    def shown(self, metrics: Mapping[str, float]) -> dict[str, tuple[str, float]]:
        """Of each metric that is shown its short name and its value."""
        found = {name: (self.labels(name), value) for name, value in metrics.items()}
        return {name: (label, value) for name, (label, value) in found.items() if label}

    def line(self, metrics: Mapping[str, float]) -> str:
        """`"k-NN k=10 0.930, k=20 0.940"`."""
        return f"{self.title} {', '.join(f'{label} {value:.3f}' for label, value in self.shown(metrics).values())}"


def _main_of_knn(metrics: Mapping[str, float]) -> tuple[str, str]:
    name = "knn_top1_k20" if "knn_top1_k20" in metrics else next(iter(metrics))
    return name, f"k-NN accuracy (k={name.rpartition('k')[2]})"


# One for both: the Hub puts the metrics of a task and a data set together.
CLASSIFICATION = ("image-classification", "classification of frozen features, by the training run")
WORDS = {
    "knn": Words(
        title="k-NN",
        main=_main_of_knn,
        labels=lambda name: f"k={name.removeprefix('knn_top1_k')}" if name.startswith("knn_top1_k") else None,
        data="eval_data",
        bank="eval_bank_data",
        described="k-NN top-1 accuracy of the frozen CLS features on `{data}`, with the labels of `{bank}`, measured"
        " in float32 by the training run:",
        task=CLASSIFICATION,
        on_hub="k-NN top-1, {}",
    ),
    "linear": Words(
        title="linear",
        main=lambda _: ("linear_top1", "linear accuracy"),
        labels={"linear_top1": "top-1", "linear_top5": "top-5"}.get,
        data="eval_data",
        bank="eval_bank_data",
        described="Accuracy of a linear classifier on the frozen features (a short probe by the training run: the best"
        " of 26 on `{data}`, trained on `{bank}` without augmentation):",
        task=CLASSIFICATION,
        on_hub="linear probe {}",
    ),
    "patch_knn": Words(
        title="patch k-NN",
        main=lambda _: ("patch_knn_miou", "patch k-NN mIoU"),
        labels={"patch_knn_miou": "mIoU", "patch_knn_pixel_accuracy": "pixel accuracy"}.get,
        data="dense_eval_data",
        bank="dense_eval_bank_data",
        described="Segmentation of `{data}` by the nearest frozen patch features of `{bank}`, without a head, measured"
        " in float32 by the training run:",
        task=("image-segmentation", "segmentation by frozen features, by the training run"),
        on_hub="patch k-NN {}",
    ),
}


def bank_of(words: Words, recipe: Mapping[str, Any]) -> Any:
    """What of a recipe the bank is read from."""
    default = recipe["train_data"] if words.data == "eval_data" else recipe[words.data]
    return recipe[words.bank] or default
