"""What the GPU is, and what it reaches in one large product and one large copy, to hold all else against."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from .part import Work


VERSIONS = ("torch", "torchvision", "transformers", "accelerate", "datasets", "triton", "timm", "faiss-gpu")


def measure(work: Work) -> None:
    work.record(
        "machine",
        {
            "device": torch.cuda.get_device_name() if work.device == "cuda" else platform.processor() or "CPU",
            "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if work.device == "cuda" else None,
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "python": platform.python_version(),
            **{name: found for name in VERSIONS if (found := installed_version(name))},
        },
    )
    side, megabytes = (64, 1) if work.toy else (8192, 4096)
    left, right = torch.randn(2, side, side, device=work.device, dtype=torch.bfloat16)
    seconds = median_seconds(lambda: left @ right, work.device)
    work.record("bf16 product", {"side": side, "teraflops_per_second": 2 * side**3 / seconds / 1e12})
    source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=work.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), work.device)
    work.record("copy", {"terabytes_per_second": 2 * source.nbytes / seconds / 1e12})


def installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def median_seconds(call: Callable, device: str, repeats: int = 10) -> float:
    """Seconds of a call, by the clock of the host, after two to warm up."""
    seconds = []
    for _ in range(repeats + 2):
        started = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
