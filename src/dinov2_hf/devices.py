"""The devices of this machine: the one that a user names, and whether launched processes have only the CPU."""

import os

import torch


def is_launched_on_cpus() -> bool:
    """Whether a launcher started this process on a machine without an accelerator.

    Accelerate connects such processes only if it is given `cpu=True`. Otherwise each of them works alone.
    """
    return "LOCAL_RANK" in os.environ and not torch.accelerator.is_available()


def find_device(name: torch.device | str | None) -> torch.device:
    """
    The device with this name.

    Args:
        name: "cpu", or an accelerator of this machine, such as "cuda" or "cuda:1". None: the first accelerator, or
            the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name is None:
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # a word that torch does not know
        device = None
    if device is not None and device.type == "cpu":
        return device
    count = torch.accelerator.device_count() if accelerator is not None else 0
    if device is None or count == 0 or device.type != accelerator.type or (device.index or 0) >= count:
        found = ["cpu", *(f"{accelerator.type}:{number}" for number in range(count))]
        raise ValueError(f"device={str(name)!r} is not on this machine, which has {', '.join(found)}.")
    return device
