"""Names and texts for the evaluations of a run: in the progress line, at the end of a run and in the card."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Words:
    """
    The texts of one evaluation.

    Args:
        title: its name in the progress line.
        main: maps metrics to the name of the main one, and its label.
        labels: the short name of a metric, `None` for one that is not shown.
        data, bank: the options for the evaluated images, and for the images to learn from or compare with, if the
            recipe names any.
        described: the sentence above the numbers in the card, with `data` and `bank`.
        task: its type and name on the Hub.
        on_hub: the name of a metric on the Hub, from its short name.
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
        """The short name and the value of each metric that is shown."""
        found = {name: (self.labels(name), value) for name, value in metrics.items()}
        return {name: (label, value) for name, (label, value) in found.items() if label}

    def line(self, metrics: Mapping[str, float]) -> str:
        """`"k-NN k=10 0.930, k=20 0.940"`."""
        return f"{self.title} {', '.join(f'{label} {value:.3f}' for label, value in self.shown(metrics).values())}"


def _main_of_knn(metrics: Mapping[str, float]) -> tuple[str, str]:
    name = "knn_top1_k20" if "knn_top1_k20" in metrics else next(iter(metrics))
    return name, f"k-NN accuracy (k={name.rpartition('k')[2]})"


# One text for both, because the Hub joins the metrics of a task and a data set.
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
    """The data of a recipe that the bank is read from."""
    default = recipe["train_data"] if words.data == "eval_data" else recipe[words.data]
    return recipe[words.bank] or default
