"""The output of an evaluation: a folder with `metrics.json`, and a table for the screen or a model card."""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..output_folders import (
    KINDS,
    is_free,
    make_folder,
    read_marker,
    refuse_links,
    refuse_overlap,
    refuse_unwritable,
    refuse_urls,
    write_text,
)
from ..public_names import without_secrets


METRICS = "metrics.json"
FEATURES = "features"  # the folder of kept features
# Results share a file only if these values are the same. The texts are for messages.
MEASURED = {
    "baseline": "`--baseline`",
    "weights_sha256": "the weights of",
    "image_processor": "the image processor of",
    "train_data": "`--train_data`",
    "train_split": "`--train_split`",
    "num_train_rows": "the number of rows of `--train_data`",
    "eval_data": "`--eval_data`",
    "eval_split": "`--eval_split`",
    "num_eval_rows": "the number of rows of `--eval_data`",
}
# Options that change the time of a protocol, and not its results.
NEUTRAL = {"batch_size", "num_workers", "keep_features"}


class EvaluationResults:
    """The results of one model on one pair of datasets, in `metrics.json`.

    The file is written after every protocol. Existing results stay: a protocol that is measured again replaces only
    its own result. The file contains the values of `measured`, and `protocols`, with the `metrics`, `options`, `date`
    and further arguments of `add` for each protocol.

    Args:
        output_dir: the folder of the file; the first result creates it. The caller holds its lock (`sole_writer`).
        measured: `model`, `model_revision` and the names of `MEASURED`.

    Raises:
        ValueError: the existing file belongs to something else, or cannot be read.
    """

    def __init__(self, output_dir: str | os.PathLike, measured: Mapping[str, Any]):
        self.folder, self.path = Path(output_dir), Path(output_dir) / METRICS
        measured = without_secrets(dict(measured))  # the file goes to the Hub with its model
        self.values = {**measured, "protocols": {}}
        if self.path.exists():
            self.values["protocols"] = _read(self.path, measured)["protocols"]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each protocol."""
        return {name: protocol["metrics"] for name, protocol in self.values["protocols"].items()}

    def is_finished(self, protocol: str, options: Mapping[str, Any]) -> bool:
        """Whether a protocol has already been measured with these options.

        Args:
            options: the options in force, as in `add`; None for an option that the protocol chooses itself.

        Raises:
            ValueError: it has been measured with other options.
        """
        former = self.values["protocols"].get(protocol)
        if former is None:
            return False
        differing = []
        for name, value in json.loads(json.dumps(options)).items():
            settled = value is None and name in former["settled"]
            if name not in NEUTRAL and not settled and former["options"].get(name) != value:
                differing.append(name)
        if differing:
            was, now = (
                ", ".join(f"`{name}` {_in_words(values.get(name))}" for name in differing)
                for values in (former["options"], options)
            )
            raise ValueError(
                f"{self.path} holds {protocol} with other options ({was}; now {now}); measure it again with"
                " --overwrite, or choose another --output_dir."
            )
        return True

    def add(
        self,
        protocol: str,
        metrics: Mapping[str, float],
        *,
        options: Mapping[str, Any],
        settled: Mapping[str, Any],
        **record: Any,
    ) -> None:
        """Add the result of a protocol, and write the file.

        Args:
            options: all options in force.
            settled: values that the protocol has chosen for options that are None.
            record: further values that are needed to measure it again, as JSON values.
        """
        self.values["protocols"][protocol] = {
            "metrics": dict(metrics),
            "options": {**options, **settled},
            "settled": sorted(settled),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **record,
        }
        make_folder(self.folder)
        write_text(self.path, json.dumps(self.values, indent=2) + "\n")


def check_output(output_dir: Path, sources: Iterable[str], protocols: Iterable[str]) -> None:
    """
    Check that results may be written to this folder. Nothing is written.

    Raises:
        ValueError: it overlaps a source, contains something other than an evaluation, contains links, or cannot be
            created.
    """
    refuse_urls(output_dir)
    refuse_overlap(output_dir, sources)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`--output_dir` is {output_dir}, a file, but a folder is needed; choose another name.")
    if not is_free(output_dir):
        marker = read_marker(output_dir)
        if marker is None:
            raise ValueError(
                f"`--output_dir` is {output_dir}, which holds files but no evaluation of dinov2_hf; choose a new or"
                " empty folder."
            )
        if marker["kind"] != "evaluation":
            raise ValueError(
                f"`--output_dir` is {output_dir}, which holds {KINDS[marker['kind']]}; choose another folder, such as"
                f" {output_dir / 'evaluation'}."
            )
    refuse_links(output_dir, [METRICS, FEATURES, *protocols])
    refuse_unwritable(output_dir / METRICS)


def _read(path: Path, measured: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        protocols = values["protocols"]
        if not all({"metrics", "options", "settled"} <= set(one) for one in protocols.values()):
            raise KeyError("metrics")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} cannot be read as results of this version; choose another --output_dir.") from None
    for name, words in MEASURED.items():
        now = json.loads(json.dumps(measured.get(name)))
        if values.get(name) == now:
            continue
        was = f"{words} {values.get('model')}" if words.endswith(" of") else f"{words} {values.get(name)}"
        now = f"other ones ({measured.get('model')})" if words.endswith(" of") else now
        raise ValueError(
            f"{path} holds results with {was}, and these would be with {now}; choose another --output_dir, because one"
            " file holds the results of one model on the same data."
        )
    return values


def _in_words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def format_metrics(metrics: Mapping[str, Mapping[str, float]], precision: Mapping[str, str] | None = None) -> str:
    """The metrics of all protocols as a table in Markdown, which reads well on a screen too.

    Args:
        precision: the precision of each protocol, as one more column.
    """
    rows = [("protocol", "metric", "value", "precision")]
    for protocol, found in metrics.items():
        for name, value in found.items():
            # The name of a class may contain any character.
            name = " ".join(name.split()).replace("|", "\\|")
            rows.append((protocol, name, f"{value:.4g}", (precision or {}).get(protocol, "")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for a, b, c, d in rows:
        line = f"| {a:{widths[0]}} | {b:{widths[1]}} | {c:>{widths[2]}} |"
        lines.append(line if precision is None else f"{line} {d:{widths[3]}} |")
    rule = f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|{'-' * (widths[2] + 1)}:|"
    lines.insert(1, rule if precision is None else f"{rule}{'-' * (widths[3] + 2)}|")
    return "\n".join(lines)
