"""
How time and memory of a pretraining step grow with images, crops, pixels, prototypes and blocks.

    python examples/benchmarks/growth.py --output growth.json --picture growth.png

One number of a recipe is changed at a time. `simulated` is ViT-S/14 on a GPU, from fake tensors (simulated_gpu.py):
lower bounds of time, exact memory. `measured` is a small network on this CPU, in float32 on one thread, each point in
a process of its own: CPU time of a step, and what the process needs beyond its imports. Exponents are slopes of a
straight line through the logarithms of all points, and between the last two of them.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from pretraining_step import Variant, random_batch
from simulated_step import simulate
from tqdm.auto import tqdm

from dinov2_hf import DINOv2Config, DINOv2PreTrainingConfig
from dinov2_hf.pictures.figures import new_figure, save_figure
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe


# The option that grows: its name in the picture, and its values in both ways; the base of a way is one of them.
AXES = {
    "per_device_train_batch_size": ("images", {"simulated": (16, 32, 64, 128), "measured": (4, 8, 16)}),
    "num_local_crops": ("local crops", {"simulated": (2, 4, 8, 16), "measured": (2, 4, 8)}),
    "image_size": ("pixels of a side", {"simulated": (112, 224, 336, 448), "measured": (56, 112, 168)}),
    "num_prototypes": ("prototypes", {"simulated": (16384, 65536, 262144), "measured": (1024, 4096, 16384)}),
    "num_hidden_layers": ("blocks", {"simulated": (6, 12, 24, 48), "measured": (2, 4, 8)}),
}
BASE = {
    "simulated": ["--config", "vits14_short", "--per_device_train_batch_size", "64"],
    "measured": (
        "--config vits14_short --hidden_size 192 --num_attention_heads 3 --num_hidden_layers 4 --image_size 112"
        " --local_crop_size 42 --num_local_crops 4 --num_prototypes 4096 --head_hidden_size 512 --bottleneck_size 128"
        " --per_device_train_batch_size 8"
    ).split(),
}
WAYS = {"simulated": "C0", "measured": "C1"}
NUMBERS = {"seconds": "time", "gib": "memory"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--steps", type=int, default=3, help="Measured of each point, after one to warm up.")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers, written after every point.")
    parser.add_argument("--picture", type=Path, help="PNG file.")
    args = parser.parse_args()
    results: dict[str, dict] = {axis: {} for axis in args.axes}
    # Measured first: a simulated backward pass is one too.
    places = [(axis, way) for way in sorted(args.ways) for axis in args.axes]
    for axis, way in tqdm(places, desc="growth", disable=not sys.stderr.isatty()):
        points = {}
        for value in AXES[axis][1][way]:
            flags = [*BASE[way], f"--{axis}", str(value)]
            points[value] = simulated(flags) if way == "simulated" else in_a_process(measured, flags, args.steps)
            results[axis][way] = {"points": points, "exponents": exponents(points)}
            write(results, args.output)
    print(table(results))
    if args.picture:
        draw(results, args.picture)


def write(results: dict, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")


def recipe(flags: list[str]) -> tuple[PreTrainingArguments, DINOv2PreTrainingConfig]:
    args, backbone, objective = parse_recipe(
        [*flags, "--train_data", ""], PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    )
    return args, DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)


def simulated(flags: list[str]) -> dict[str, float]:
    """From networks of two and three blocks: costs are linear in their number, which tests/fake_gpu holds."""
    _, config = recipe(flags)
    two, three = (simulated_blocks(flags, number) for number in (2, 3))
    more = config.backbone_config.num_hidden_layers - 2
    return {name: two[name] + more * (three[name] - two[name]) for name in NUMBERS}


def simulated_blocks(flags: list[str], number: int) -> dict[str, float]:
    costs = simulate(*recipe([*flags, "--num_hidden_layers", str(number)]))
    return {"seconds": costs.product_seconds + costs.other_seconds, "gib": costs.peak_bytes / 2**30}


def measured(flags: list[str], steps: int) -> dict[str, float]:
    """CPU seconds of a step, and the memory that it needs beyond the imports."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    args, config = recipe(flags)
    batch, seconds = random_batch(args, config), []
    step = Variant("separate-no", args, config, torch.device("cpu"))
    for _ in range(steps + 1):
        started = time.process_time()
        step.step(batch, "warm up")
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": statistics.median(seconds[1:]), "gib": peak / 2**20}  # kibibytes on Linux


def in_a_process(function: Callable, *arguments):
    """In a fork of this one, which has made the slow imports and no backward pass, after which none can be forked."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def exponents(points: dict[int, dict[str, float]]) -> dict[str, dict[str, float]]:
    """p of `y ~ x^p`, of each number: over all points, and between the last two."""
    if len(points) < 2:
        return {}
    x = np.log(list(points))
    found = {}
    for name in NUMBERS:
        y = np.log([point[name] for point in points.values()])
        (before_x, last_x), (before_y, last_y) = list(pairwise(x))[-1], list(pairwise(y))[-1]
        found[name] = {"all": np.polyfit(x, y, 1)[0], "last": (last_y - before_y) / (last_x - before_x)}
    return found


def table(results: dict) -> str:
    lines = ["| | way | from | to | time | exponent (last) | memory | exponent (last) |", "|" + "---|" * 8]
    for axis, way, found in entries(results):
        values = list(found["points"])
        first, last = found["points"][values[0]], found["points"][values[-1]]
        cells = [AXES[axis][0], way, f"{values[0]:,}", f"{values[-1]:,}"]
        for name, unit in (("seconds", "s"), ("gib", "GiB")):
            grown = found["exponents"][name]
            cells.append(f"{first[name]:.3g} → {last[name]:.3g} {unit}")
            cells.append(f"**{grown['all']:.2f}** ({grown['last']:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def entries(results: dict) -> Iterator[tuple[str, str, dict]]:
    for axis, ways in results.items():
        for way, found in ways.items():
            yield axis, way, found


def draw(results: dict, path: Path) -> None:
    """Each point as a multiple of the first of its curve, on logarithmic axes: an exponent is a slope."""
    figure = new_figure(3 * len(results), 6)
    grid = figure.subplots(len(NUMBERS), len(results), squeeze=False)
    for column, axis in enumerate(results):
        for panel, (name, title) in zip(grid[:, column], NUMBERS.items(), strict=True):
            for way, found in results[axis].items():
                x, y = list(found["points"]), [point[name] for point in found["points"].values()]
                grown = found["exponents"][name]["all"]
                panel.plot(
                    [value / x[0] for value in x],
                    [value / y[0] for value in y],
                    marker="o",
                    color=WAYS[way],
                    label=f"{way}: {grown:.2f}",
                )
            last = max(value / x[0] for value in x)
            panel.plot([1, last], [1, last], color="0.6", linestyle=":", linewidth=1)
            for scale in (panel.set_xscale, panel.set_yscale):
                scale("log", base=2)
            for ticks in (panel.xaxis, panel.yaxis):
                ticks.set_major_formatter("{x:g}")
            panel.set_title(f"{title} over {AXES[axis][0]}", fontsize=10, loc="left")
            panel.legend(fontsize=8, frameon=False, title="exponent", title_fontsize=8)
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        grid[-1, column].set_xlabel("times the smallest")
    for row in grid:
        row[0].set_ylabel("times that of the smallest")
    figure.tight_layout()
    save_figure(figure, path, dpi=90)


if __name__ == "__main__":
    main()
