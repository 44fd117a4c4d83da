"""The points of `inference.py` that matter most: one image and many, at both usual sizes, in bfloat16."""

import sys

import torch

from .part import Rows, Work


BATCH_SIZES, SIZES, MODELS = (64, 1), (224, 518), ("large", "small", "base")
SECONDS_TO_START = 8  # a size of a model


def measure(work: Work) -> None:
    import inference

    flags = ["--device", work.device, "--dtypes", "bf16", "--models", *MODELS, "--sizes", *map(str, SIZES)]
    flags += ["--seconds_per_point", "2"]
    if work.original:
        flags += ["--original", work.original]
    if work.toy:
        inference.SECONDS_PER_TURN, inference.ROUNDS = 0.001, (2, 2)
        inference.memory_mib = lambda *_: None  # it starts a process for each peer
        flags += ["--num_hidden_layers", "1", "--native_size", "28"]
    sys.argv = ["inference.py", *flags]
    args = inference.parse_arguments()
    device = torch.device(work.device)
    for model in MODELS[1:2] if work.toy else MODELS:
        for size in (28,) if work.toy else SIZES:
            if not work.toy and work.seconds_left < SECONDS_TO_START:
                work.record(f"{model}, {size} px", {"skipped": "no time was left"})
                continue
            networks, differences = inference.build_equal_networks(model, size, args, device)
            for batch_size in (1,) if work.toy else BATCH_SIZES:
                point = inference.Point(model, size, "bf16", batch_size)
                measured = inference.measure(point, networks, args, device, lambda share: None)
                measured["largest_difference_at_native_size"] = differences
                work.record(f"{model}, {size} px, batch {batch_size}", measured)


def draw(figure, rows: Rows) -> None:
    found = {name: row["speed_of_ours_over"] for name, row in rows.items() if "speed_of_ours_over" in row}
    axes = figure.subplots()
    for peer in sorted({peer for ratios in found.values() for peer in ratios}):
        axes.plot([ratios.get(peer) for ratios in found.values()], list(found), "o", label=f"over {peer}")
    axes.axvline(1, color="0.5", linewidth=1)
    axes.set_xlabel("speed of ours, times the peer's")
    axes.invert_yaxis()
    if found:
        axes.legend(fontsize=8)
