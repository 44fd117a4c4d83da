"""`dinov2-hf doctor`."""

import platform
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants, get_token
from packaging.requirements import Requirement
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..data.loader_workers import SHARED_MEMORY, available_cores


PACKAGE = "dinov2_hf"
PACKAGES = (
    PACKAGE, "torch", "torchvision", "transformers", "accelerate", "datasets", "huggingface_hub", "numpy", "pillow",
    "opencv-python-headless", "deepspeed", "torchao", "faiss-cpu", "faiss-gpu", "scikit-learn", "datatrove", "onnx",
    "onnxruntime", "av", "peft", "timm",
)  # fmt: skip
OF_THE_TESTS = "test"  # an extra only for tests
ATTENTION = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # the limit of a container


def doctor() -> dict[str, Any]:
    """Show what this machine has: versions, devices and what works on them, memory, extras, login to the Hub."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": available_cores(),
        "versions": versions(),
        "devices": devices(),
        "memory_gb": memory(),
        "requirements_not_met": missing(None),
        "extras": {name: missing(name) for name in extras()},
        "hub": {
            "has_token": get_token() is not None,
            "is_offline": constants.HF_HUB_OFFLINE,
            "endpoint": constants.ENDPOINT,
        },
    }
    describe(found)
    return found


def versions() -> dict[str, str]:
    """The versions of the installed packages."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    built = {"CUDA of torch": torch.version.cuda, "ROCm of torch": torch.version.hip}
    return found | {name: number for name, number in built.items() if number}


def devices() -> dict[str, dict[str, Any]]:
    """The CPU and every accelerator, each with the features that work."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = torch.accelerator.device_count() if accelerator is not None else 0
    names = ["cpu", *(f"{accelerator.type}:{number}" for number in range(count))]
    return {name: describe_device(torch.device(name)) for name in names}


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name, memory in GB, whether the hardware computes in bf16 and TF32, and the kernels of attention that run."""
    if device.type == "cpu":
        facts = torch.cpu.get_capabilities()
        bf16 = any(facts.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
        return {
            "name": facts.get("cpu_name", platform.machine()), "bf16": bf16, "tf32": False,
            "attention": attention(device, torch.float32),
        }  # fmt: skip
    if device.type != "cuda":
        bf16 = _runs(lambda: torch.ones(8, 8, dtype=torch.bfloat16, device=device).square())
        return {"name": device.type, "bf16": bf16, "tf32": False, "attention": attention(device, torch.float16)}
    properties = torch.cuda.get_device_properties(device)
    with torch.cuda.device(device):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "bf16": bf16,
        "tf32": torch.version.hip is None and properties.major >= 8,  # since Ampere
        "attention": attention(device, torch.bfloat16 if bf16 else torch.float16),
    }


def attention(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The kernels of `scaled_dot_product_attention` that run on a device, each tried on 257 tokens of width 64."""
    tokens = torch.ones(1, 6, 257, 64, device=device, dtype=dtype)

    def attend(kernel: SDPBackend) -> None:
        with warnings.catch_warnings(), sdpa_kernel(kernel):
            warnings.simplefilter("ignore")  # warnings say why a kernel does not run
            scaled_dot_product_attention(tokens, tokens, tokens)

    return [name for name, kernel in ATTENTION.items() if _runs(partial(attend, kernel))]


def _runs(function: Callable[[], Any]) -> bool:
    try:
        function()
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return True


def memory() -> dict[str, dict[str, float]]:
    """
    Main memory and shared memory (through which workers pass batches), in GB of 1e9 bytes, within container limits.
    """
    main = psutil.virtual_memory()
    total, free = main.total, main.available
    try:
        limit = int(MEMORY_LIMIT.read_text())
        used = int(MEMORY_LIMIT.with_name("memory.current").read_text())
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError):  # no container, or one without a limit
        pass
    found = {"memory": {"total": round(total / 1e9, 1), "free": round(free / 1e9, 1)}}
    if SHARED_MEMORY.is_dir():
        shared = shutil.disk_usage(SHARED_MEMORY)
        found[str(SHARED_MEMORY)] = {"total": round(shared.total / 1e9, 1), "free": round(shared.free / 1e9, 1)}
    return found


def extras() -> list[str]:
    """The extras of this package, as its metadata has them."""
    return [name for name in metadata(PACKAGE).get_all("Provides-Extra") or () if name != OF_THE_TESTS]


def missing(extra: str | None) -> list[str]:
    """Requirements of an extra, or of the package itself, that are not installed, or only in another version."""
    found = []
    for line in requires(PACKAGE) or ():
        requirement = Requirement(line)
        marker = requirement.marker
        is_of_extra = marker is not None and not marker.evaluate({"extra": ""})
        if is_of_extra != (extra is not None) or (marker and not marker.evaluate({"extra": extra or ""})):
            continue
        try:
            is_met = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            is_met = False
        if not is_met:
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def describe(found: dict[str, Any]) -> None:
    """Print the findings, one line each."""
    lines = [("python", f"{found['python']}, {found['platform']}"), *found["versions"].items()]
    for name, device in found["devices"].items():
        size = f"{found['cpu_cores']} cores" if name == "cpu" else f"{device.get('memory_gb', '?')} GB"
        kinds = [kind for kind in ("bf16", "tf32") if device[kind]]
        kernels = ", ".join(device["attention"]) or "none"
        lines.append(
            (name, f"{device['name']}, {size}; {' and '.join(kinds) or 'float32 only'}; attention: {kernels}")
        )
    lines += [(name, f"{size['free']} of {size['total']} GB free") for name, size in found["memory_gb"].items()]
    lines += [("not met", f'{what}: pip install "{what}"') for what in found["requirements_not_met"]]
    for name, packages in found["extras"].items():
        install = f'needs {", ".join(packages)}: pip install "{PACKAGE}[{name}]"' if packages else "installed"
        lines.append((f"extra {name}", install))
    hub = found["hub"]
    login = "with a token" if hub["has_token"] else "without a token (hf auth login, or HF_TOKEN)"
    lines.append(("Hub", f"{hub['endpoint']}, {login}{', offline by HF_HUB_OFFLINE' if hub['is_offline'] else ''}"))
    for name, text in lines:
        print(f"{name:24}{text}")
