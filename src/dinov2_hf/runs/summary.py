"""What came out of a run: `metrics.json`, and lines for the terminal."""

import json
from pathlib import Path

from ..output_folders import write_text
from ..public_names import without_secrets
from ..training.monitor import read_metrics
from ..training.students import own_of_student


def knn_before_and_after(state: dict, student: str = "") -> dict[str, dict[str, float] | None]:
    """Accuracies of a student's backbone `before` and `after` training; `None` when not measured."""
    return {
        moment: own_of_student(state[f"knn_{moment}"], student) if state.get(f"knn_{moment}") else None
        for moment in ("before", "after")
    }


def write_summary(output_dir: Path, state: dict, student: str = "") -> None:
    """
    Write `metrics.json`: the steps, k-NN before and after, and the last training record of `metrics.jsonl`; `None`
    where there is none, as when a finished run is continued in another folder.
    """
    path = output_dir / "metrics.jsonl"
    training = [record for record in read_metrics(path) if "loss" in record] if path.exists() else []
    summary = {
        "steps": state["step"],
        "knn": knn_before_and_after(state, student),
        "last_training_record": training[-1] if training else None,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(output_dir / "metrics.json", json.dumps(summary, indent=2) + "\n")


def format_knn(metrics: dict[str, float]) -> list[str]:
    """`knn_top1_k20: 0.93` as "k=20 0.930"; top-1 only."""
    return [
        f"k={name.removeprefix('knn_top1_k')} {value:.3f}"
        for name, value in metrics.items()
        if name.startswith("knn_top1_")
    ]


def format_knn_gain(state: dict, eval_data: str | None, student: str = "") -> str:
    """Before and after for one number of neighbours, 20 where measured; nothing when k-NN was not measured."""
    knn = knn_before_and_after(state, student)
    if not knn["after"]:
        return ""
    key = "knn_top1_k20" if "knn_top1_k20" in knn["after"] else next(iter(knn["after"]))
    before = f"{knn['before'][key]:.3f}" if knn["before"] else "not measured"
    measured_on = without_secrets(str(eval_data)) + (f", student {student}" if student else "")
    return (
        f"k-NN accuracy (k={key.rpartition('k')[2]}) on {measured_on}\n"
        f"  before training   {before}\n"
        f"  after training    {knn['after'][key]:.3f}\n"
    )
