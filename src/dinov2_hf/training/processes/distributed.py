"""Choices that depend on the device, sums over processes, and the end of processes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list


def cpu_supports_bfloat16() -> bool:
    """Whether this CPU has bfloat16 matrix products in hardware (AVX512-BF16 or AMX). Otherwise bf16 is slower."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def multiplies_bfloat16(device_type: str) -> bool:
    """Whether a CPU or GPU has bfloat16 products in hardware. GPUs before Ampere (V100, T4, RTX 20) emulate them."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_supports_bfloat16()


def choose_mixed_precision(requested: str, launched: str, use_cpu: bool, is_sharded: bool = False) -> str:
    """
    The precision of a run: `"no"`, `"bf16"` or `"fp16"`.

    Args:
        requested: one of these, which is final, or `"auto"`: bf16 if the hardware has bf16 products. Otherwise fp16 on
            a GPU, or `"no"` if the backend shards, and `"no"` on a CPU.
        launched: the setting of `accelerate launch`. `"auto"` uses it unless it is `"no"`, which is also the setting
            of an unconfigured launch.
        is_sharded: whether the backend is FSDP2 or DeepSpeed, which do not train in fp16 here.
    """
    if requested != "auto":
        return requested
    if launched not in ("", "no"):
        return launched
    if multiplies_bfloat16("cpu" if use_cpu else "cuda"):
        return "bf16"
    return "no" if use_cpu or is_sharded else "fp16"


def precision_in_words(precision: str, device_type: str) -> str:
    """`precision`, with a remark about it on this device."""
    if precision == "bf16" and not multiplies_bfloat16(device_type):
        return "bf16, which this device emulates slowly; `mixed_precision: auto` takes another"
    if precision == "fp16" and device_type == "cuda" and not multiplies_bfloat16(device_type):
        return "fp16, since this GPU would emulate bf16"
    return precision


def choose_attention(requested: str, mixed_precision: str, device: torch.device) -> str:
    """
    The attention of a run: `requested`, or for `"auto"` SDPA, except under bf16 on a CPU, where the backward pass of
    torch's fused kernel is slow (a whole ViT step took 2.0 times as long as with eager attention).
    """
    if requested != "auto":
        return requested
    return "eager" if device.type == "cpu" and mixed_precision == "bf16" else "sdpa"


def mean_over_processes(
    accelerator: Accelerator, values: dict[str, torch.Tensor], alike: dict[str, torch.Tensor] | None = None
) -> dict[str, float]:
    """Means of scalars over all processes, and scalars that are `alike` on all, in one collective and one transfer."""
    alike = alike or {}
    means = accelerator.reduce(torch.stack([value.detach().float() for value in values.values()]), reduction="mean")
    others = [value.detach().float().to(means.device).reshape(1) for value in alike.values()]
    return dict(zip([*values, *alike], torch.cat([means, *others]).tolist(), strict=True))


def on_main_for_all(accelerator: Accelerator | PartialState, work: Callable[[], Any]) -> Any:
    """The result of `work` on the main process, or its `ValueError` or `OSError`, on every process."""
    answer = [None]
    if accelerator.is_main_process:
        try:
            answer = [work()]
        except (ValueError, OSError) as error:
            answer = [error]
    (found,) = broadcast_object_list(answer)
    if isinstance(found, ValueError | OSError):
        raise found
    return found


def end_run(accelerator: Accelerator) -> None:
    """`accelerator.end_training()` (trackers send their remaining data). Then the process may exit."""
    let_gloo_finish(accelerator.state)
    accelerator.end_training()


def let_gloo_finish(state: AcceleratorState | PartialState) -> None:
    """
    Wait a moment for gloo, before the process group of several processes on CPUs is destroyed and they exit.

    Its threads live as long as the process. If one still frees the tensors of the last collective while Python exits,
    it aborts the process (https://github.com/pytorch/pytorch/pull/179291): a finished run would end with an error.
    """
    if state.num_processes > 1 and state.device.type == "cpu":
        time.sleep(0.5)  # milliseconds are needed, more of them on a busy machine
