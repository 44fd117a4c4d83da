"""Results of an evaluation in the README of a model: a table, and the `model-index` that the Hub shows beside it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .results import format_metrics


NEW_CARD = """---
library_name: transformers
---

# {name}
"""
HEADING = "## Evaluation of the frozen features"
# Of each protocol the task of the Hub, and how its main metrics begin and are called there.
HUB_TASKS = {
    "knn": ("image-classification", {"knn_top1": "accuracy"}),
    "linear": ("image-classification", {"linear_top1": "accuracy"}),
    "logistic_regression": ("image-classification", {"logistic_regression_top1": "accuracy"}),
    "segmentation": ("image-segmentation", {"segmentation_miou": "mean_iou"}),
    "depth": ("depth-estimation", {"depth_rmse": "rmse", "depth_abs_rel": "abs_rel", "depth_delta1": "delta1"}),
    "retrieval": ("image-feature-extraction", {"retrieval_map": "map"}),
    "copy_detection": ("image-feature-extraction", {"copy_detection_micro_ap": "micro_ap"}),
    "video": ("video-classification", {"video_top1": "accuracy"}),
}


def check_card(model: str, baseline: str | None) -> None:
    """Raise a `ValueError` where the results of this model cannot go into its card."""
    if baseline is not None:
        raise ValueError(f"`update_card` is set, but `baseline` is {baseline}: those results are not of the model.")
    if not Path(model).is_dir():
        raise ValueError(
            f"`update_card` is set, but `model` is {model}, which is no folder with a README to write to."
        )


def update_model_card(folder: str | Path, values: Mapping[str, Any]) -> Path:
    """Write results into the README of a model folder, which is made where it is missing; other words stay.

    Results of an earlier evaluation are replaced where they are of the same protocol and data.

    Args:
        folder: of the model.
        values: what `metrics.json` holds.

    Returns:
        The path of the README.
    """
    path = Path(folder) / "README.md"
    name = Path(folder).resolve().name
    card = ModelCard.load(path) if path.exists() else ModelCard(NEW_CARD.format(name=name))
    new = _eval_results(values)
    replaced = {_place(result) for result in new}
    card.data.eval_results = [r for r in card.data.eval_results or [] if _place(r) not in replaced] + new
    if card.data.eval_results and not card.data.model_name:
        card.data.model_name = name
    card.text = _with_section(card.text, values)
    card.save(path)
    return path


def _place(result: EvalResult) -> tuple:
    """What a new result replaces: all of the same protocol on the same data."""
    return result.task_name, result.dataset_type, result.dataset_name, result.dataset_split


def _eval_results(values: Mapping[str, Any]) -> list[EvalResult]:
    results = []
    for protocol, found in values["protocols"].items():
        task, main_metrics = HUB_TASKS.get(protocol, (None, {}))
        for name, value in found["metrics"].items():
            kind = next((kind for start, kind in main_metrics.items() if name.startswith(start)), None)
            if kind is not None and not name.endswith("_std"):
                results.append(
                    EvalResult(
                        task_type=task,
                        task_name=f"{protocol.replace('_', ' ')} of frozen features",
                        dataset_type=_dataset_id(values["eval_data"]),
                        dataset_name=_public_name(values["eval_data"]),
                        dataset_split=values["eval_split"],
                        metric_type=kind,
                        metric_name=name,
                        metric_value=round(value, 4),
                    )
                )
    return results


def _with_section(text: str, values: Mapping[str, Any]) -> str:
    title = (
        f"### `{_public_name(values['eval_data'])}` ({values['eval_split']}), learned from "
        f"`{_public_name(values['train_data'])}` ({values['train_split']})"
    )
    metrics = {name: protocol["metrics"] for name, protocol in values["protocols"].items()}
    heading, body, after = _split_at_section(text)
    parts = [part.strip() + "\n" for part in re.split(r"^(?=### )", body, flags=re.MULTILINE) if part.strip()]
    for part in parts:
        if part.startswith(title + "\n"):
            metrics = _metrics_of_table(part) | metrics
    parts = [part for part in parts if not part.startswith(title + "\n")]
    parts.append(f"{title}\n\n{format_metrics(metrics)}\n")
    return heading.rstrip() + f"\n\n{HEADING}\n\n" + "\n".join(parts) + after


def _metrics_of_table(text: str) -> dict[str, dict[str, float]]:
    """What `format_metrics` wrote."""
    metrics = {}
    for protocol, name, value in re.findall(r"^\| (\w+) +\| (\S+) +\| +(\S+) \|$", text, flags=re.MULTILINE):
        if value != "value":
            metrics.setdefault(protocol, {})[name] = float(value)
    return metrics


def _split_at_section(text: str) -> tuple[str, str, str]:
    """What is before our section, what is in it, and what is after it."""
    before, found, rest = text.partition(HEADING + "\n")
    if not found:
        return text, "", ""
    next_heading = re.search(r"^##? ", rest, flags=re.MULTILINE)
    end = next_heading.start() if next_heading else len(rest)
    return before, rest[:end], ("\n" + rest[end:] if next_heading else "")


def _is_hub_id(data: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", data)) and not (Path(data).exists() or Path(data).suffix)


def _dataset_id(data: str) -> str:
    return data if _is_hub_id(data) else "private"


def _public_name(data: str) -> str:
    """Of a path the last part, because the folders above it are private."""
    return data if _is_hub_id(data) else Path(data).name
