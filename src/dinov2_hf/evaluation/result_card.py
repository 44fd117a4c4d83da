"""Results of evaluations in the README of a model: a table, and the `model-index` that the Hub shows.

The README contains our own record of all results, in a hidden comment. Table and `model-index` are made from it, so
the order of updates does not matter. Results of others are never changed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import RepoCard

from ..atomic_files import new_file
from ..output_folders import add_to_marker
from ..public_names import is_hub_name, public_name
from .protocols import PROTOCOLS
from .results import format_metrics


NEW_CARD = """---
library_name: transformers
---

# {name}
"""
HEADING = "## Evaluation of the frozen features"
END = "<!-- end of dinov2_hf's evaluations -->"
RECORD = re.compile(r"<!-- dinov2_hf evaluations: (.*?) -->")
# Text that users add before or after it is kept.
SECTION = re.compile(rf"{re.escape(HEADING)}\s+{RECORD.pattern}.*?{re.escape(END)}\s*", re.DOTALL)


def check_card(model: str, baseline: str | None) -> None:
    """Raise a `ValueError` if the results of this model cannot be written into its card."""
    if baseline is not None:
        raise ValueError(
            f"`--update_card` is given, but `--baseline` is {baseline}: those results are not of the model; leave one"
            " out."
        )
    if not Path(model).is_dir():
        raise ValueError(
            f"`--update_card` is given, but `--model` is {model}, which is not a folder with a README to write to."
        )
    path = Path(model) / "README.md"
    if path.exists():
        _loaded(path)


def update_model_card(folder: str | Path, values: Mapping[str, Any]) -> Path:
    """Write results into the README of a model folder. A missing README is created; other text is kept.

    Earlier results of the same protocol on the same data are replaced; results of other weights are removed.

    Args:
        folder: folder of the model.
        values: the content of `metrics.json`.

    Returns:
        The path of the README.

    Raises:
        ValueError: the README cannot be read, or another process is writing it.
    """
    path = Path(folder) / "README.md"
    name = Path(folder).resolve().name
    with new_file(path, overwrite=True) as partial:
        card = _loaded(path) if path.exists() else RepoCard(NEW_CARD.format(name=name))
        before = _recorded(card.text)
        records = _merged(before, values)
        # Our part of the old `model-index` is exactly what our old record gives.
        index = _without(card.data.get("model-index") or [], _index_entries(before))
        entries = _index_entries(records)
        if entries and not index:
            index = [{"name": name, "results": []}]
        if entries:
            index[0]["results"] = [*index[0]["results"], *entries]
        if index:
            card.data["model-index"] = index
        card.text = _with_section(card.text, records)
        card.save(partial)
    add_to_marker(path.parent, path.name)
    return path


def _loaded(path: Path) -> RepoCard:
    try:
        card = RepoCard.load(path)
    except Exception as error:  # YAML raises its own exceptions
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as a model card ({reason}); repair or remove it.") from None
    index = card.data.get("model-index") or []
    if not isinstance(index, list) or not all(isinstance(model, dict) for model in index):
        raise ValueError(f"`model-index` in {path} is not a list of models; repair or remove it.")
    _recorded(card.text)
    return card


def _recorded(text: str) -> list[dict[str, Any]]:
    """The record in a card: the results of each pair of datasets and protocol."""
    found = RECORD.search(text)
    try:
        return json.loads(found[1]) if found else []
    except ValueError:
        raise ValueError(
            "the README holds a damaged record of dinov2_hf's evaluations; remove that comment."
        ) from None


def _merged(records: Iterable[Mapping[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records joined with those of `metrics.json`, in an order that depends only on their content."""
    data = {
        "eval": public_name(values["eval_data"]),
        "eval_split": values["eval_split"],
        "train": public_name(values["train_data"]),
        "train_split": values["train_split"],
        # Distinguishes two files with the same name, without naming the folders above them.
        "data_id": _data_id(values),
        "is_hub": is_hub_name(values["eval_data"]),
        "weights_sha256": values["weights_sha256"],
    }
    merged = {_key(record): dict(record) for record in records if record["weights_sha256"] == values["weights_sha256"]}
    for protocol, found in values["protocols"].items():
        names = ("metrics", "precision", "task", "main_metrics")
        record = {**data, "protocol": protocol, **{name: found[name] for name in names}}
        merged[_key(record)] = record
    return [merged[key] for key in sorted(merged)]


def _key(record: Mapping[str, Any]) -> tuple:
    order = PROTOCOLS.names()
    protocol = record["protocol"]
    place = order.index(protocol) if protocol in order else len(order)
    names = ("eval", "eval_split", "train", "train_split", "data_id")
    return (*(record[name] for name in names), place, protocol)


def _sections(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The records of each pair of datasets, by the names of the evaluation data and the training data."""
    records = list(records)
    ids: dict[tuple[str, str], set[str]] = {}
    for record in records:
        ids.setdefault(_names(record), set()).add(record["data_id"])
    sections: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        evaluated, learned = _names(record)
        if len(ids[evaluated, learned]) > 1:  # files with the same name
            learned += f", data {record['data_id']}"
        sections.setdefault((evaluated, learned), []).append(record)
    return sections


def _names(record: Mapping[str, Any]) -> tuple[str, str]:
    return f"{record['eval']} ({record['eval_split']})", f"{record['train']} ({record['train_split']})"


def _index_entries(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Our entries of a `model-index`. No two have the same task, dataset, configuration and split, because readers
    would merge them.
    """
    entries: dict[tuple, dict[str, Any]] = {}
    for (_, learned), of_data in _sections(records).items():
        for record in of_data:
            task, main_metrics = record["task"], record["main_metrics"]
            for name, value in record["metrics"].items():
                kind = next((kind for start, kind in main_metrics.items() if name.startswith(start)), None)
                if kind is None or name.endswith("_std"):
                    continue
                entry = entries.setdefault(
                    (task, learned, record["data_id"], record["eval_split"]),
                    {
                        "task": {"type": task, "name": f"{task.replace('-', ' ')} with frozen features"},
                        "dataset": {
                            "name": record["eval"],
                            "type": record["eval"] if record["is_hub"] else f"private-{record['data_id']}",
                            "config": f"learned from {learned}",
                            "split": record["eval_split"],
                        },
                        "metrics": [],
                    },
                )
                entry["metrics"].append({"type": kind, "value": round(value, 4), "name": name})
    return list(entries.values())


def _without(index: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A `model-index` without our metrics. Entries without any remaining metric are removed."""
    left = []
    for model in index:
        results = []
        for result in model.get("results", []):
            mine = [
                (metric["name"], metric["value"])
                for entry in ours
                if _identity(entry) == _identity(result)
                for metric in entry["metrics"]
            ]
            metrics = [m for m in result.get("metrics", []) if (m.get("name"), m.get("value")) not in mine]
            if metrics or not mine:
                results.append({**result, "metrics": metrics} if mine else result)
        if results or not model.get("results"):
            left.append({**model, "results": results} if "results" in model else model)
    return left


def _identity(result: Mapping[str, Any]) -> tuple:
    dataset = result.get("dataset") or {}
    return ((result.get("task") or {}).get("type"), *(dataset.get(name) for name in ("type", "config", "split")))


def _with_section(text: str, records: list[dict[str, Any]]) -> str:
    parts = []
    for (evaluated, learned), of_data in _sections(records).items():
        metrics = {record["protocol"]: record["metrics"] for record in of_data}
        precision = {record["protocol"]: record["precision"] for record in of_data}
        title = f"### On {_code(evaluated)}, learned from {_code(learned)}"
        parts.append(f"{title}\n\n{format_metrics(metrics, precision)}\n")
    # No text inside the comment may end it.
    record = json.dumps(records, sort_keys=True).replace("<", "\\u003c").replace(">", "\\u003e")
    section = f"{HEADING}\n\n<!-- dinov2_hf evaluations: {record} -->\n\n" + "\n".join(parts) + f"\n{END}\n"
    former = SECTION.search(text)
    if former is None:
        return f"{text.rstrip()}\n\n{section}"
    after = text[former.end() :]
    return text[: former.start()] + section + (f"\n{after}" if after else "")


def _code(words: str) -> str:
    return f"`{words.replace('`', '')}`"


def _data_id(values: Mapping[str, Any]) -> str:
    names = [values[name] for name in ("train_data", "train_split", "eval_data", "eval_split")]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
