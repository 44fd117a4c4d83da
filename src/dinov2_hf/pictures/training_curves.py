"""A picture of all metrics of a run over its steps."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from ..training.monitoring.monitor import read_metrics
from .figures import new_figure, save_figure


# Colours of the Okabe-Ito palette, which colour-blind readers can distinguish.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_TARGETS = {"target_entropy": "mean entropy", "target_information": "information on the image"}
_RANKS = {"cls_effective_rank": "CLS", "patch_effective_rank": "patches"}
_COSINES = {"cls_pair_cosine": "CLS", "patch_pair_cosine": "patches"}
_SCHEDULES = {
    "learning_rate": "Learning rate",
    "weight_decay": "Weight decay",
    "teacher_momentum": "Teacher momentum",
    "teacher_temperature": "Teacher temperature",
}
_COLUMNS = 4
_MIN_POINTS_TO_SMOOTH = 60


def plot_training_curves(
    metrics_path: str | Path,
    png_path: str | Path,
    *,
    num_prototypes: int | None = None,
    pixels: Mapping[str, float] | None = None,
) -> bool:
    """Draw the curves of a metrics file to a PNG, one panel for each kind of metric that the file has.

    Noisy curves with many points are drawn pale, with their running mean on top. A metric with a standard error,
    `{metric}_stderr`, has a band of that width.

    Args:
        metrics_path: a file of `append_metrics`.
        png_path: the picture; missing folders are made, and the file appears complete or not at all.
        num_prototypes: K, for a line at ln K in the panel of the targets (the entropy, in nats, of targets that are
            uniform over the prototypes), and for a line at K in the panel of the prototypes in use.
        pixels: the k-NN accuracies of raw pixels, by the names of the metrics, for a line at the best of them.

    Returns:
        Whether there was anything to draw; there is nothing before the first record of a run.
    """
    curves = curves_of(read_metrics(metrics_path)) if Path(metrics_path).exists() else {}
    panels = panels_of(curves, num_prototypes, pixels)
    if not panels:
        return False

    narrow = sum(not panel.wide for panel in panels)
    heights = [1.35 for panel in panels if panel.wide] + [1.0] * math.ceil(narrow / _COLUMNS)
    columns = min(_COLUMNS, narrow) or 1
    figure = new_figure(max(3.9 * columns, 7.8), 2.7 * sum(heights))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.04)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    all_steps = np.concatenate([curves[name][0] for panel in panels for name in panel.labels])
    margin = 0.02 * np.ptp(all_steps) or 1  # a single step stands in the middle
    cell = 0
    for panel in panels:
        row, column = divmod(cell, columns)
        span = columns if panel.wide else 1
        axes = figure.add_subplot(grid[row, column : column + span])
        _draw_panel(axes, panel, curves)
        axes.set_xlim(all_steps.min() - margin, all_steps.max() + margin)
        cell += span
    save_figure(figure, png_path, dpi=130, bbox_inches=None)
    return True


def curves_of(records: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each metric, over the records that have it; NaN where the value was not finite."""
    names = dict.fromkeys(name for record in records for name in record if name != "step")
    curves = {}
    for name in names:
        points = [(record["step"], record[name]) for record in records if name in record]
        steps, values = np.array(points, dtype=np.float64).T
        curves[name] = steps, values
    return curves


@dataclass
class Panel:
    """Curves that are drawn in the same panel.

    Attributes:
        title: text above the panel.
        labels: the label of each metric in it.
        wide: whether it takes a whole row.
        smooth: whether curves with many points are noisy, and have a running mean.
        percent: whether values are shares.
        logarithmic: whether the axis of the values is logarithmic.
        line: a value for comparison, and its label.
    """

    title: str
    labels: dict[str, str]
    wide: bool = False
    smooth: bool = False
    percent: bool = False
    logarithmic: bool = False
    line: tuple[float, str] | None = None

    def mean_of(self, values: np.ndarray) -> np.ndarray | None:
        """The running mean of a curve, if it is drawn with one."""
        return running_mean(values) if self.smooth and len(values) >= _MIN_POINTS_TO_SMOOTH else None


def panels_of(
    names: Iterable[str], num_prototypes: int | None, pixels: Mapping[str, float] | None = None
) -> list[Panel]:
    """The panels for the existing metrics, each with the labels of its metrics; see `plot_training_curves`."""

    def present(labels: dict[str, str]) -> dict[str, str]:
        return {name: label for name, label in labels.items() if name in names}

    def like(prefix: str = "", suffix: str = "") -> dict[str, str]:
        """All metrics with this prefix and suffix, labelled by the rest of their names."""
        found = (name for name in names if name.startswith(prefix) and name.endswith(suffix))
        return {name: name.removeprefix(prefix).removesuffix(suffix).replace("_", " ").strip() for name in found}

    knn = sorted((name for name in names if name.startswith("knn_top1")), key=lambda name: (len(name), name))
    knn_labels = {name: name.removeprefix("knn_top1_").replace("k", "k = ") for name in knn}
    of_pixels = max(((value, name) for name, value in (pixels or {}).items() if name in knn_labels), default=None)
    best = of_pixels and (of_pixels[0], f"raw pixels, {knn_labels[of_pixels[1]]}")
    uniform = (math.log(num_prototypes), "uniform targets (ln K)") if num_prototypes else None
    every = (num_prototypes, "all (K)") if num_prototypes else None
    panels = [
        Panel("Losses", present({"loss": "total"}) | like(suffix="_loss"), wide=True, smooth=True),
        Panel("k-NN top-1 accuracy", knn_labels, percent=True, line=best),
        Panel("Linear probe, top-1 accuracy", present({"linear_top1": ""}), percent=True),
        Panel("Patch k-NN, mean IoU", present({"patch_knn_miou": ""}), percent=True),
        Panel("Teacher targets (nats)", present(_TARGETS), smooth=True, line=uniform),
        Panel("Prototypes in use", present({"prototypes_in_use": "effective number"}), logarithmic=True, line=every),
        Panel("Effective rank of features", present(_RANKS), smooth=True),
        Panel("Cosine between images", present(_COSINES), smooth=True),
        Panel("Gradient norm", like(prefix="grad_norm"), smooth=True),
        Panel("Images per second", present({"images_per_second": ""}), smooth=True),
        *(Panel(title, present({name: ""})) for name, title in _SCHEDULES.items()),
        Panel("Loss weights", like(suffix="_loss_weight")),
    ]
    return [panel for panel in panels if panel.labels]


def _draw_panel(axes, panel: Panel, curves: dict) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

    for color, (name, label) in zip(cycle(COLORS), panel.labels.items(), strict=False):
        steps, values = curves[name]
        mean = panel.mean_of(values)
        if mean is not None:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(steps, mean, color=color, linewidth=1.8, label=label)
        else:
            marker = "o" if len(values) <= 40 else None
            axes.plot(steps, values, color=color, linewidth=1.8, marker=marker, markersize=3.5, label=label)
        errors = errors_of(name, curves)
        if errors is not None:  # so that noise does not look like a change
            low, high = values - errors, values + errors
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0, label="± standard error")
    if panel.line:
        height, label = panel.line
        axes.axhline(height, color="#555555", linewidth=1.2, linestyle="--", label=label)
    if panel.wide:
        axes.legend(
            frameon=False, fontsize=9, ncols=len(panel.labels), loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
        )
    elif axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)

    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors="#444444", labelsize=9)
    axes.set_xlabel("step", fontsize=9, color="#444444")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
    plain_numbers = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1) if panel.percent else plain_numbers)


def errors_of(name: str, curves: dict) -> np.ndarray | None:
    """The standard errors of a curve, if they are known at all of its steps."""
    steps, errors = curves.get(f"{name}_stderr", ((), None))
    return errors if np.array_equal(steps, curves[name][0]) else None


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a thirtieth of the points; NaN points do not count and stay NaN."""
    window = np.ones(max(5, len(values) // 30) | 1)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.where(finite, sums / np.maximum(counts, 1.0), np.nan)
