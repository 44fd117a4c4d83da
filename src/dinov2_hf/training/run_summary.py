"""What came out of a run: `metrics.json`, and lines for the terminal."""

import json
import os
from pathlib import Path

from .monitor import read_metrics


def knn_before_and_after(state: dict) -> dict[str, dict[str, float] | None]:
    """Accuracies of the backbone `before` and `after` training; `None` when not measured."""
    return {"before": state.get("knn_before"), "after": state.get("knn_after")}


def write_summary(output_dir: Path, state: dict) -> None:
    """Write `metrics.json`: the steps, k-NN before and after, and the last training record of `metrics.jsonl`."""
    training = [record for record in read_metrics(output_dir / "metrics.jsonl") if "loss" in record]
    summary = {"steps": state["step"], "knn": knn_before_and_after(state), "last_training_record": training[-1]}
    partial = output_dir / f".metrics.json.{os.getpid()}"
    partial.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(partial, output_dir / "metrics.json")


def format_knn(metrics: dict[str, float]) -> list[str]:
    """`knn_top1_k20: 0.93` as "k=20 0.930"; top-1 only."""
    return [
        f"k={name.removeprefix('knn_top1_k')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("knn_top1_")
    ]


def format_knn_gain(state: dict, eval_data: str | None) -> str:
    """Before and after for one number of neighbours, 20 where measured; nothing when k-NN was not measured."""
    knn = knn_before_and_after(state)
    if not knn["after"]:
        return ""
    key = "knn_top1_k20" if "knn_top1_k20" in knn["after"] else next(iter(knn["after"]))
    return (
        f"k-NN accuracy (k={key.rpartition('k')[2]}) on {eval_data}\n"
        f"  before training   {knn['before'][key]:.3f}\n"
        f"  after training    {knn['after'][key]:.3f}\n"
    )
