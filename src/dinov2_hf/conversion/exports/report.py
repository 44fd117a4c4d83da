"""The report of an export: its files, and its difference to the model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from ...public_names import without_secrets
from ..card_code import without_code
from .formats import ExportCheckError


@dataclass(frozen=True)
class Measurement:
    """The largest difference between two models on random images `(batch_size, C, height, width)`, in float32."""

    batch_size: int
    height: int
    width: int
    max_difference: float
    largest_value: float

    def within(self, tolerance: float) -> bool:
        """Whether the difference is at most `tolerance` times the largest value (or 1). Never for a NaN."""
        return self.max_difference <= tolerance * max(1.0, self.largest_value)


@dataclass(frozen=True)
class ExportReport:
    """
    Args:
        folder: folder of the export.
        measurements: comparison of the exported model with the model.
        notes: sentences for the user: where and why the two differ, and what was left out.
    """

    folder: Path
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join([f"Exported to {self.folder}", measurement_table(self.measurements), *self.notes])


def measure(reference: Iterable[torch.Tensor], other: Iterable[torch.Tensor], images: torch.Tensor) -> Measurement:
    """
    Compare the outputs of two models for the same images `(B, C, H, W)`.

    Raises:
        `ExportCheckError`: the outputs differ in number or shape.
    """
    pairs = [(first.float(), second.float()) for first, second in zip(reference, other, strict=True)]
    for first, second in pairs:
        if first.shape != second.shape:
            raise ExportCheckError(f"The exported model gives {tuple(second.shape)} instead of {tuple(first.shape)}.")
    return Measurement(
        batch_size=images.shape[0],
        height=images.shape[2],
        width=images.shape[3],
        max_difference=torch.stack([(first - second).abs().max() for first, second in pairs]).max().item(),
        largest_value=torch.stack([first.abs().max() for first, _ in pairs]).max().item(),
    )


def measurement_table(measurements: Iterable[Measurement]) -> str:
    """The measurements as a table in Markdown."""
    rows = [
        f"| {m.batch_size} | {m.height} x {m.width} | {m.max_difference:.1e} | {m.largest_value:.1e} |"
        for m in measurements
    ]
    return "\n".join(["| images | height x width | largest difference | largest value |", "|---|---|---|---|", *rows])


def export_card(
    source: Path, *, title: str, body: str, library_name: str, pipeline_tag: str, report: ExportReport
) -> ModelCard:
    """
    README.md of an export. Licence, data sets and other metadata come from the card of the source folder, if there is
    one. Its text follows at the end, without its code.

    Args:
        body: Markdown that says what this is and how to load it.
    """
    data: Any = ModelCardData()
    source_text = ""
    if (source / "README.md").is_file():
        card = ModelCard((source / "README.md").read_text(), ignore_metadata_errors=True)
        data, source_text = card.data, without_secrets(without_code(card.text))
    data.library_name, data.pipeline_tag = library_name, pipeline_tag
    data.tags = list(dict.fromkeys([*(data.tags or []), "dinov2"]))
    parts = [
        f"# {title}",
        body,
        "## Measured after the export",
        "Random images through the model of dinov2_hf and through this one, both in float32:",
        measurement_table(report.measurements),
        *report.notes,
    ]
    if source_text:
        parts += ["---", "From the card of the model that this was exported from:", source_text]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")
