"""
How fast a forward pass is, and how much memory it takes, beside stock transformers, timm and the original.

    python examples/benchmarks/inference.py --models small --sizes 224 518 --batch_sizes 1 8 \
        --original <clone of github.com/facebookresearch/dinov2> --output inference.json

All networks hold the same random weights, with positions stored for `--native_size`, and their tokens are compared at
that size before anything is timed: the same work is measured. At a point (model, size, batch size, precision) the
networks then take turns, round after round in changing order, so that the ratios of a round hold on a machine whose
speed drifts; the medians of those ratios are reported. A point whose forward pass would take longer than
`--max_seconds_per_forward` is left out, and the output says so.

At other sizes than the native one stock transformers and the original resize their positions in every forward pass;
timm has done it once, beforehand, and ours on a CPU does it in the first pass, on a GPU in every one.

Memory is weights and activations. On a GPU: the allocator's peak during a forward pass without what the other networks
hold. On a CPU: the largest resident size of a process that makes one network and calls it once, less its size after
the imports, without `--compile`.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from peers import PEERS, at_size, is_installed, prepared
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging


PATCH_SIZE = 14
ARCHITECTURES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True},
}
# Rounding of 24 blocks in float32 gives 1e-5; one exchanged matrix gives 1e-2 or more.
TOLERANCE = 1e-3
# Short forward passes are repeated until a turn lasts this long, so that clock and switch of networks weigh little.
SECONDS_PER_TURN = 0.3
ROUNDS = (7, 50)


@dataclass(frozen=True)
class Point:
    model: str
    size: int
    dtype: str
    batch_size: int


def main() -> None:
    args = parse_arguments()
    device = torch.device(args.device)
    transformers_logging.disable_progress_bar()
    points = [
        Point(*choice) for choice in product(args.models, args.sizes, args.dtypes, sorted(set(args.batch_sizes)))
    ]
    predicted = predict_seconds(points, args, device)
    results = {"machine": describe_machine(args, device), "points": []}
    kept = [point for point in points if predicted[point] <= args.max_seconds_per_forward]
    seconds = {point: seconds_of_point(predicted[point], args) for point in kept}
    print(f"{len(kept)} of {len(points)} points fit; about {sum(seconds.values()) / 60:.0f} minutes", file=sys.stderr)

    with tqdm(
        total=round(sum(seconds.values())),
        unit="s",
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} < {remaining}",
        disable=not sys.stderr.isatty(),
    ) as progress:
        for (model, size), here in grouped(points):
            networks, differences = {}, {}
            if any(point in kept for point in here):
                progress.set_description(f"{model} {size} px")
                networks, differences = build_equal_networks(model, size, args, device)
            for point in here:
                if point not in kept:
                    reason = (
                        f"a forward pass would take about {predicted[point]:.2g} s; the limit is"
                        f" {args.max_seconds_per_forward:g} s"
                    )
                    results["points"].append({**asdict(point), "skipped": reason})
                    continue
                progress.set_description(f"{model} {size} px, {point.dtype}, batch {point.batch_size}")
                try:
                    measured = measure(point, networks, args, device, partial(advance, progress, seconds[point]))
                except torch.OutOfMemoryError:
                    measured = {"skipped": "the device has too little memory"}
                else:
                    measured["largest_difference_at_native_size"] = differences
                results["points"].append({**asdict(point), **measured})
                if args.output:
                    write(results, args.output)
    if args.output:
        write(results, args.output)
    print(table(results, list(args.peers)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=ARCHITECTURES, default=["small", "base", "large"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 518], help="Sides of the images, in pixels.")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument(
        "--dtypes", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="bf16 is autocast."
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), help="By default ours and all that are installed.")
    parser.add_argument("--original", type=Path, help="Clone of the original's repository.")
    parser.add_argument("--native_size", type=int, default=518, help="Size that positions are stored for.")
    parser.add_argument("--num_hidden_layers", type=int, help="Fewer blocks than the models have, for a quick look.")
    parser.add_argument("--compile", action="store_true", help="torch.compile every network.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds_per_point", type=float, default=30, help="Wanted; 7 rounds are taken at least.")
    parser.add_argument("--max_seconds_per_forward", type=float, default=30)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers, written after every point.")
    args = parser.parse_args()

    for size in (args.native_size, *args.sizes):
        if size < PATCH_SIZE or size % PATCH_SIZE:
            parser.error(f"an image of {size} px does not divide into patches of {PATCH_SIZE}")
    if min(args.batch_sizes) < 1:
        parser.error(f"`--batch_sizes` has {min(args.batch_sizes)}; it must be 1 or more")
    if args.original:
        if not (args.original / "dinov2" / "models").is_dir():
            parser.error(f"`--original` is {args.original}, which holds no dinov2/models")
        sys.path.insert(0, str(args.original.resolve()))
        if args.device == "cpu":
            os.environ["XFORMERS_DISABLED"] = "1"  # its kernels are for GPUs
    missing = [name for name in PEERS if not is_installed(name)]
    for name in missing:
        if args.peers and name in args.peers:
            parser.error(
                "`--peers` names the original; give its clone in `--original`"
                if name == "original"
                else f"`--peers` names {name}, which is not installed"
            )
    if missing and not args.peers:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    chosen = args.peers or [name for name in PEERS if name not in missing]
    args.peers = ["ours", *(name for name in chosen if name != "ours")]
    if not args.peers[1:]:
        parser.error("there is no peer to compare with: install timm, give `--original` or name one in `--peers`")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    return args


def fields_of(model: str, args: argparse.Namespace) -> dict:
    fields = {**ARCHITECTURES[model], "image_size": args.native_size, "patch_size": PATCH_SIZE}
    if args.num_hidden_layers:
        fields["num_hidden_layers"] = args.num_hidden_layers
    return fields


def predict_seconds(points: list[Point], args: argparse.Namespace, device: torch.device) -> dict[Point, float]:
    """Seconds of a forward pass at each point, from our own with one image."""
    predicted, of_one_image = {}, {}
    for (model, size), here in grouped(points):
        module = prepared(PEERS["ours"].construct(fields_of(model, args)), device)
        for point in here:
            if point.dtype not in of_one_image:
                call = forward_at(Point(model, size, point.dtype, 1), "ours", module, device)
                call()
                of_one_image[point.dtype] = min(timed(call, 1, device) for _ in range(2))
            predicted[point] = of_one_image[point.dtype] * point.batch_size
        of_one_image.clear()
    return predicted


def seconds_of_point(of_forward: float, args: argparse.Namespace) -> float:
    """Seconds that a point will take: its rounds, and three more calls of each network to warm up and for memory."""
    rounds = max(ROUNDS[0] * len(args.peers) * max(of_forward, SECONDS_PER_TURN), args.seconds_per_point)
    return rounds + 3 * len(args.peers) * of_forward


def grouped(points: list[Point]):
    """Points of each model and size, which share their networks."""
    groups: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        groups.setdefault((point.model, point.size), []).append(point)
    return groups.items()


@torch.inference_mode()
def build_equal_networks(
    model: str, size: int, args: argparse.Namespace, device: torch.device
) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The networks of all peers with our weights, and by how much their tokens differ from ours at the native size."""
    torch.manual_seed(0)
    fields = fields_of(model, args)
    state = PEERS["ours"].construct(fields).state_dict()
    images = torch.randn(1, 3, args.native_size, args.native_size, device=device)
    networks, differences, expected = {}, {}, None
    for name in args.peers:
        peer = PEERS[name]
        module = prepared(peer.with_weights(fields, state), device)
        tokens = peer.tokens(peer.forward(module, images)).float()
        if name == "ours":
            expected = tokens
        else:
            differences[name] = (tokens - expected).abs().max().item()
            if not differences[name] <= TOLERANCE:
                sys.exit(
                    f"{name} differs from ours by {differences[name]:.1e} at {args.native_size} px: not compared."
                )
        networks[name] = at_size(module, name, size)
    return networks, differences


def forward_at(point: Point, name: str, module: nn.Module, device: torch.device, compiled: bool = False) -> Callable:
    """A function of nothing: the forward pass of the point."""
    images = torch.randn(point.batch_size, 3, point.size, point.size, device=device)
    forward = partial(PEERS[name].forward, module)
    if compiled:
        forward = torch.compile(forward)

    def call() -> None:
        autocast = torch.autocast(device.type, dtype=torch.bfloat16) if point.dtype == "bf16" else nullcontext()
        with torch.inference_mode(), autocast:
            forward(images)

    return call


def timed(call: Callable, repeats: int, device: torch.device) -> float:
    """Mean seconds of a call; of one thread on a CPU its own, which others on the machine do not lengthen as much."""
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    synchronize(device)
    started = clock()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (clock() - started) / repeats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def advance(progress: tqdm, seconds: float, share: float) -> None:
    progress.update(seconds * share)


def measure(
    point: Point,
    networks: dict[str, nn.Module],
    args: argparse.Namespace,
    device: torch.device,
    advance: Callable[[float], None],
) -> dict:
    """Speed and memory of all networks at a point; `advance` is told the share of the work that each round was."""
    torch.compiler.reset()
    calls, fastest = {}, math.inf
    for name, module in networks.items():
        calls[name] = forward_at(point, name, module, device, args.compile)
        calls[name]()
        fastest = min(fastest, timed(calls[name], 1, device))
    repeats = max(1, math.ceil(SECONDS_PER_TURN / fastest))
    rounds = int(args.seconds_per_point / (len(calls) * repeats * fastest))
    rounds = min(max(rounds, ROUNDS[0]), ROUNDS[1])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    for index in range(rounds):
        start = index % len(order)
        for name in order[start:] + order[:start]:
            seconds[name].append(timed(calls[name], repeats, device))
        advance(1 / rounds)
    ratios = {
        name: [theirs / ours for theirs, ours in zip(seconds[name], seconds["ours"], strict=True)]
        for name in order
        if name != "ours"
    }
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    return {
        "rounds": rounds,
        "forward_passes_per_turn": repeats,
        "speed_of_ours_over": medians,
        "quartiles_of_that": {name: quartiles(values) for name, values in ratios.items()},
        "speed_of_ours_over_best": min(medians.values()),
        "peers": {
            name: {
                "images_per_second": point.batch_size / statistics.median(values),
                "seconds_per_forward": {"median": statistics.median(values), "min": min(values), "max": max(values)},
                "memory_mib": memory_mib(point, name, networks[name], calls[name], args, device),
            }
            for name, values in seconds.items()
        },
    }


def quartiles(values: list[float]) -> list[float]:
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return [lower, upper]


def memory_mib(
    point: Point, name: str, module: nn.Module, call: Callable, args: argparse.Namespace, device: torch.device
) -> float | None:
    """Weights and activations of one network, in MiB; `None` when its process died, which lack of memory does."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
        return (torch.cuda.max_memory_allocated(device) - before + weights) / 2**20
    # Forks of a process that has made the slow imports and computed nothing.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PEERS[peer].module for peer in args.peers])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=report_resident_size, args=(sender, point, name, fields_of(point.model, args)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def report_resident_size(sender, point: Point, name: str, fields: dict) -> None:
    importlib.import_module(PEERS[name].module)
    after_imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = torch.device("cpu")
    call = forward_at(point, name, at_size(prepared(PEERS[name].construct(fields), device), name, point.size), device)
    call()
    sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - after_imports) / 2**10)  # kibibytes on Linux


def describe_machine(args: argparse.Namespace, device: torch.device) -> dict:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in args.peers:
        module = importlib.import_module(PEERS[name].module.split(".")[0])
        if hasattr(module, "__version__"):
            versions[module.__name__] = module.__version__
    if args.original:
        commit = subprocess.run(["git", "-C", str(args.original), "rev-parse", "HEAD"], capture_output=True, text=True)
        versions["original"] = commit.stdout.strip() or "unknown"
    cpus = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpus[0] if cpus else platform.processor(),
        "torch_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "compiled": args.compile,
        "native_size": args.native_size,
        "num_hidden_layers": args.num_hidden_layers or "all",
        "versions": versions,
    }


def write(results: dict, path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n")
    temporary.replace(path)


def table(results: dict, peers: list[str]) -> str:
    """Images per second and memory of every point, in Markdown."""
    rows = [["model", "px", "dtype", "batch", *(f"{name} img/s" for name in peers), "ours / best"]]
    rows[0] += [f"{name} MiB" for name in peers]
    rows.append(["---"] * len(rows[0]))
    for point in results["points"]:
        row = [point["model"], str(point["size"]), point["dtype"], str(point["batch_size"])]
        if "skipped" in point:
            row += [f"skipped: {point['skipped']}"]
        else:
            row += [f"{point['peers'][name]['images_per_second']:.2f}" for name in peers]
            row += [f"{point['speed_of_ours_over_best']:.3f}"]
            memory = [point["peers"][name]["memory_mib"] for name in peers]
            row += ["?" if value is None else f"{value:.0f}" for value in memory]
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
