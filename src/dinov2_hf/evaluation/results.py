"""What an evaluation leaves: `metrics.json`, and a table for the screen or a model card."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EvaluationResults:
    """`metrics.json`, which is written after every protocol, so that an interrupted evaluation keeps what it has.

    It holds `model`, `baseline`, the data, and for each protocol its `metrics` by name, the `options` that were given
    and the `seconds` it took.

    Args:
        output_dir: the folder of the file; made by the first result.
        model: folder or Hub id.
        baseline: what was measured in the place of the model, or None.
        data: `train_data`, `train_split`, `eval_data` and `eval_split`.
        overwrite: replace the file that is there.

    Raises:
        ValueError: the file is there, and `overwrite` is not set.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        *,
        model: str,
        baseline: str | None,
        data: Mapping[str, str],
        overwrite: bool,
    ):
        self.path = Path(output_dir) / "metrics.json"
        if self.path.exists() and not overwrite:
            raise ValueError(
                f"`output_dir` is {output_dir}, which holds the results of an evaluation; choose another, or replace "
                "them with --overwrite."
            )
        self.values = {"model": model, "baseline": baseline, **data, "protocols": {}}

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The metrics of each protocol."""
        return {name: protocol["metrics"] for name, protocol in self.values["protocols"].items()}

    def add(self, protocol: str, metrics: Mapping[str, float], options: Mapping[str, Any], seconds: float) -> None:
        """Keep the result of a protocol, and write the file."""
        self.values["protocols"][protocol] = {
            "metrics": dict(metrics),
            "options": dict(options),
            "seconds": round(seconds, 1),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = self.path.with_name(f".metrics.{os.getpid()}.json")
        partial_path.write_text(json.dumps(self.values, indent=2) + "\n")
        os.replace(partial_path, self.path)


def format_metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """The metrics of all protocols as a table in Markdown, which reads well on a screen too."""
    rows = [(protocol, name, f"{value:.4g}") for protocol, found in metrics.items() for name, value in found.items()]
    rows.insert(0, ("protocol", "metric", "value"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"| {a:{widths[0]}} | {b:{widths[1]}} | {c:>{widths[2]}} |" for a, b, c in rows]
    lines.insert(1, f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|{'-' * (widths[2] + 1)}:|")
    return "\n".join(lines)
