"""The metrics of a run: one JSON line per record.

A record is a dict of plain numbers with a "step". Train records come every few steps; evaluation records, with k-NN
accuracies, come more rarely; both live in the same file.
"""

import json
import math
import os
from numbers import Integral, Real
from pathlib import Path

from ...output_folders import write_text


def append_metrics(path: str | Path, record: dict[str, int | float]) -> None:
    """Append one record to the metrics file, which is made if missing, and flush it.

    Args:
        path: the metrics file, JSON lines.
        record: numbers by name, with an integer "step". NaN and infinity are written as null.

    Raises:
        ValueError: "step" is missing or not an integer, or a value is not a plain number.
    """
    if not isinstance(record.get("step"), Integral):
        raise ValueError(f"record has step={record.get('step')!r}, but every record needs an integer step.")
    line = json.dumps({name: _json_number(name, value) for name, value in record.items()})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The record must not be appended to an unfinished line of a killed process.
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(f"{line}\n".encode())
        file.flush()


def read_metrics(path: str | Path) -> list[dict[str, int | float | None]]:
    """All records of a metrics file, in the order they were written; None stands for NaN or infinity.

    An unfinished line of a killed process is skipped.

    Raises:
        FileNotFoundError: there is no such file.
    """
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def truncate_metrics(path: str | Path, step: int) -> None:
    """Remove the records after `step`, if a run resumes from there. The file is replaced in one step.

    A missing file stays missing, because the run has not written any record.
    """
    path = Path(path)
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step]
    write_text(path, "".join(kept))


def _json_number(name: str, value) -> int | float | None:
    if not isinstance(value, Real):
        raise ValueError(
            f"record has {name}={value!r}, a {type(value).__name__}, but metrics are plain numbers (a tensor has "
            ".item())."
        )
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None
