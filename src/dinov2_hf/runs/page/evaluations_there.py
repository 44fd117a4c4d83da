"""Results of `dinov2-hf evaluate` in the folder of a run: the trained features, untrained features and pixels."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...evaluation.results import METRICS
from ...output_folders import read_marker
from ...public_names import public_name


BASELINES = {None: "trained", "untrained": "untrained", "pixels": "pixels"}
LEVELS = ("*", "*/*", "students/*/*", "students/*/*/*")
# Values that are the same within a table: the same images, with the same image processor.
SAME = ("train_data", "train_split", "eval_data", "eval_split", "num_train_rows", "num_eval_rows", "image_processor")


@dataclass
class EvaluationTable:
    """
    Results on one pair of data sets.

    Args:
        title: names of the data sets, by the last part of their paths.
        models: measured models, such as `model` or `checkpoints/step_0000600`, by the name of the column.
        rows: protocol and metric, with the value of each measured column.
    """

    title: str
    models: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)


def evaluations_there(folder: Path) -> list[EvaluationTable]:
    """The tables of evaluations in folders of the run, with their main metrics."""
    tables: dict[str, EvaluationTable] = {}
    found = {path.parent for level in LEVELS for path in folder.glob(f"{level}/{METRICS}")}
    for place in sorted(found):
        if (read_marker(place) or {}).get("kind") != "evaluation":
            continue
        try:
            _add(tables, json.loads((place / METRICS).read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # being written, or of another version
            continue
    for table in tables.values():  # what was trained, then what it is compared with
        table.models = dict(sorted(table.models.items(), key=lambda item: item[0] in ("untrained", "pixels")))
        if "pixels" in table.models:
            table.models["pixels"] = table.models.pop("pixels")
    return list(tables.values())


def _add(tables: dict[str, EvaluationTable], values: Mapping[str, Any]) -> None:
    train, test = (public_name(values[name]) for name in ("train_data", "eval_data"))
    title = f"{test} ({values['num_eval_rows']:,} rows), learned from {train} ({values['num_train_rows']:,})"
    protocols = {
        (protocol, metric): found["metrics"][metric]
        for protocol, found in values["protocols"].items()
        for metric in _main(found)
    }
    table = tables.setdefault(json.dumps([values[name] for name in SAME]), EvaluationTable(title))
    model = "/".join(Path(values["model"]).parts[-2:])
    column = BASELINES[values["baseline"]]
    if table.models.get(column, model) != model:  # another checkpoint, say
        column = f"{column}, {model}"
    table.models[column] = model
    for row, value in protocols.items():
        table.rows.setdefault(row, {})[column] = value


def _main(found: Mapping[str, Any]) -> list[str]:
    """The main metrics of a protocol, or all if it names none."""
    main = [name for name in found.get("main_metrics") or () if name in found["metrics"]]
    return main or list(found["metrics"])
