"""
Whole training steps of ViT-S, ViT-B and ViT-L on random crops, ours eager and compiled and the original's, one after
the other, each alone on the device: images per second, memory, share of what the GPU multiplies, kernels, and where
the host waits.
"""

import gc
import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from .machine import synchronize
from .part import Rows, Work
from .toy_recipe import TOY


# The recipe, and what it is told: batches as one GPU of 80 GB has them.
NETWORKS = {
    "ViT-L/16": ["--config", "vitl16_imagenet1k_short"],
    "ViT-S/14": ["--config", "vits14_short"],
    "ViT-B/14": [
        *["--config", "vits14_short", "--hidden_size", "768", "--num_attention_heads", "12"],
        *["--per_device_train_batch_size", "96"],
    ],
}
# What `Variant` calls them, and the seconds that they need to be measured.
VARIANTS = {
    "ours, eager": ("packed-bf16", 15),
    "original": (None, 15),
    "ours, blocks compiled": ("packed-bf16-blocks", 45),
    "ours, step compiled": ("packed-bf16-step", 60),
}
MOST_STEPS, TIMED_SECONDS = 30, 6


@dataclass
class Measured:
    """A variant of the step, ready to be taken."""

    step: Callable[[], None]
    batch_size: int


def measure(work: Work) -> None:
    if work.original:
        sys.path.insert(0, work.original)
    if work.device == "cpu":
        os.environ["XFORMERS_DISABLED"] = "1"  # its kernels are for GPUs
    if work.toy:
        torch.compiler.set_stance("force_eager")  # a compiler takes minutes
    flops: dict[str, int] = {}
    for variant, (_, seconds) in VARIANTS.items():
        for network, flags in NETWORKS.items():
            row = f"{network}, {variant}"
            if variant == "original" and not work.original:
                work.record(row, {"skipped": "no clone was named by `--original`"})
            elif work.toy and network != "ViT-S/14":
                work.record(row, {"skipped": "all are of one size"})
            elif not work.toy and work.seconds_left < seconds:
                work.record(row, {"skipped": "no time was left"})
            else:
                measure_variant(work, row, flags, flops)


def measure_variant(work: Work, row: str, flags: list[str], flops: dict[str, int]) -> None:
    network, _, variant = row.partition(", ")
    try:
        started = time.perf_counter()
        measured = build(VARIANTS[variant][0], [*flags, *(TOY if work.toy else [])], work.device)
        for _ in range(1 if work.toy else 3):
            measured.step()
        synchronize(work.device)
        numbers = {"batch": measured.batch_size, "seconds_to_the_fourth_step": time.perf_counter() - started}
        numbers |= timed(measured, work)
        if variant == "ours, eager":
            flops[network] = count_flops(measured.step)
        if network in flops:  # of ours eager, so that recomputing counts for nobody
            per_second = flops[network] / numbers["seconds_per_step"]["median"]
            numbers["teraflops_per_step"] = flops[network] / 1e12
            numbers["share_of_peak"] = per_second / (1e12 * work.peak_teraflops)
        work.record(row, numbers)
        work.record(row, kernels(measured.step, work.device) | waits(measured.step, work.device))
    except Exception as error:  # the next one may fit into memory, or compile
        work.record(row, {"failed": f"{type(error).__name__}: {error}"[:2000]})
    finally:
        measured = None
        gc.collect()
        torch.compiler.reset()
        if work.device == "cuda":
            torch.cuda.empty_cache()


def build(variant: str | None, flags: list[str], device: str) -> Measured:
    from original_step import OriginalStep
    from pretraining_step import Variant, random_batch

    from dinov2_hf import DINOv2Config, DINOv2PreTrainingConfig
    from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
    from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe

    args, backbone, objective = parse_recipe(
        [*flags, "--train_data", ""], PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    ours = Variant(variant or "packed-bf16", args, config, torch.device(device))
    batch = random_batch(args, config, pad_masked=ours.compile == "step")
    batch = {name: value.to(device) for name, value in batch.items()}
    if variant is None:
        original = OriginalStep(args, ours.model, torch.device(device), "bf16")
        return Measured(lambda: original.step(batch), args.per_device_train_batch_size)
    return Measured(lambda: ours.step(batch, "warm up"), args.per_device_train_batch_size)


def timed(measured: Measured, work: Work) -> dict:
    """Steps until `TIMED_SECONDS` are over, each waited for."""
    if work.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    while len(seconds) < (2 if work.toy else MOST_STEPS) and sum(seconds) < TIMED_SECONDS:
        started = time.perf_counter()
        measured.step()
        synchronize(work.device)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return {
        "images_per_second": measured.batch_size / median,
        "seconds_per_step": {"median": median, "min": min(seconds), "max": max(seconds), "steps": len(seconds)},
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if work.device == "cuda" else None,
    }


def count_flops(step: Callable[[], None]) -> int:
    """Of matrix products, convolutions and attention in a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def kernels(step: Callable[[], None], device: str, top: int = 12) -> dict:
    """Time of the kernels of one step on the device, and those that take the most."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device == "cuda"
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    try:
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            step()
    except RuntimeError as error:  # a machine may not let it
        return {"kernels": f"not profiled: {error}"}
    found = sorted(profiler.key_averages(), key=lambda kernel: -getattr(kernel, time_of))
    return {
        "kernels": {
            "launched": sum(kernel.count for kernel in found),
            "milliseconds": sum(getattr(kernel, time_of) for kernel in found) / 1000,
            "longest": {kernel.key[:120]: round(getattr(kernel, time_of) / 1000, 3) for kernel in found[:top]},
        }
    }


def waits(step: Callable[[], None], device: str) -> dict:
    """The lines of a step at which the host waits for the device."""
    if device != "cuda":
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return {"waits": dict(Counter(f"{warning.filename}:{warning.lineno}" for warning in found))}


def draw(figure, rows: Rows) -> None:
    found = {name: row for name, row in rows.items() if "images_per_second" in row}
    panels = {"images_per_second": "images/s"}
    if any(row["peak_memory_gib"] for row in found.values()):
        panels["peak_memory_gib"] = "peak memory, GiB"
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (key, label) in zip(grid, panels.items(), strict=True):
        values = [row[key] for row in found.values()]
        bars = axes.barh(list(found), values, color=["C1" if "original" in name else "C0" for name in found])
        axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
        axes.set_xlabel(label)
        axes.margins(x=0.15)
    grid[0].invert_yaxis()
