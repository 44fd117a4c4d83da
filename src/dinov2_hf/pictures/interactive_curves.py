"""The curves of a run for a page: a value at every step under the pointer, parts of them larger, single ones hidden.

They are the panels of `training_curves`; `interactive_curves.js` draws them in the browser.
"""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from .training_curves import COLORS, curves_of, errors_of, panels_of


SCRIPT = Path(__file__).with_suffix(".js")
MOST_POINTS = 1000  # of a curve; a screen has no more places


def interactive_curves(
    records: list[dict], *, num_prototypes: int | None = None, pixels: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """What the script draws, as JSON holds it.

    Args:
        records: of `read_metrics`.
        num_prototypes, pixels: as in `plot_training_curves`.

    Returns:
        Of each panel `title`, `wide`, `percent`, `logarithmic`, `line` and `curves`; of each of these `label`,
        `color`, `steps`, `values`, and `mean` and `errors` or `None`. Values that are not finite are `None`. A curve
        of more than `MOST_POINTS` points has every n-th of them, where its `every` is n, and the last.
    """
    curves = curves_of(records)
    return [
        {
            **{name: getattr(panel, name) for name in ("title", "wide", "percent", "logarithmic", "line")},
            "curves": [
                {"label": label, "color": color, **_points(panel, name, curves)}
                for color, (name, label) in zip(cycle(COLORS), panel.labels.items(), strict=False)
            ],
        }
        for panel in panels_of(curves, num_prototypes, pixels)
    ]


def _points(panel, name: str, curves: dict) -> dict[str, Any]:
    steps, values = curves[name]
    every = -(-len(steps) // MOST_POINTS)
    shown = np.unique([*range(0, len(steps), every), len(steps) - 1])

    def numbers(series: np.ndarray | None) -> list[float | None] | None:
        if series is None:
            return None
        return [float(f"{value:.6g}") if np.isfinite(value) else None for value in series[shown]]

    return {
        "every": every,
        "steps": steps[shown].astype(int).tolist(),
        "values": numbers(values),
        "mean": numbers(panel.mean_of(values)),
        "errors": numbers(errors_of(name, curves)),
    }
