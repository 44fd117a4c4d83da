"""The common last part of the dense protocols: train once, save before measuring, measure, draw."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...features import FeatureExtractor
from ...pictures.figures import draw_beside_numbers
from ..metrics import Metrics
from ..protocols import folder_of_main
from ..unmeasured_heads import forget_unmeasured, train_once


def train_and_measure(
    name: str,
    extractor: FeatureExtractor,
    head: nn.Module,
    *,
    train: Callable[[], Any],
    save: Callable[[Path], None],
    measure: Callable[[], tuple[dict[str, float], list]],
    draw: Callable[[list, Path], None],
    settings: Mapping[str, Any],
    findings: Mapping[str, Any],
    output_dir: str | Path | None,
) -> Metrics:
    """The metrics of a head on the frozen model. The head is on disk before it is measured.

    Args:
        name: name of the protocol and of its picture.
        head: the head, in training mode.
        train: changes the head in place.
        save: writes the head and its backbone to a folder.
        measure: returns the metrics, and a few results to draw.
        draw: draws these results.
        settings, output_dir: as in `train_once`.
        findings: findings of the metrics, see `Metrics`.
    """
    folder = folder_of_main(extractor, output_dir)
    train_once(extractor, head.state_dict(keep_vars=True), train, settings=settings, output_dir=output_dir)
    head.eval()
    if folder is not None:
        save(folder / "model")
    metrics, results = measure()
    draw_beside_numbers(folder, f"{name}.png", draw, results)
    forget_unmeasured(extractor, output_dir)
    return Metrics(metrics, **findings)
