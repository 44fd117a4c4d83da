"""AdamW with the original's parameter groups (layer-wise decay), the writing of schedules, and gradient clipping."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from .schedules import ScheduleValues
from .students import prefixed


BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")


def learning_rate_multiplier(
    name: str, num_layers: int, layerwise_decay: float, patch_embed_lr_multiplier: float
) -> float:
    """
    Factor on the learning rate of one parameter.

    With decay `d` and `L` blocks: `d ** (L + 1)` for everything before the first block (patches times
    `patch_embed_lr_multiplier` more), `d ** (L - i)` for block `i` (so the last block has `d`, not 1), 1 for the final
    norm and for the heads.
    """
    if "backbone." not in name:
        return 1.0
    block = BLOCK.search(name)
    if block:
        layer = int(block[1]) + 1
    else:
        layer = 0 if "embeddings." in name else num_layers + 1
    multiplier = layerwise_decay ** (num_layers + 1 - layer)
    return multiplier * patch_embed_lr_multiplier if "patch_embeddings." in name else multiplier


def weight_decay_multiplier(name: str) -> float:
    """0 for biases, norms and LayerScale, else 1; tokens, positions and prototypes are decayed, as in the original."""
    return 0.0 if name.endswith(".bias") or "norm" in name or name.endswith(".lambda1") else 1.0


def parameter_groups(
    student: nn.Module, *, layerwise_decay: float, patch_embed_lr_multiplier: float
) -> list[dict[str, Any]]:
    """
    Trainable parameters of `student`, each in exactly one group.

    Groups are made within each part (`backbone`, `dino_head`, `ibot_head`) and have `part`, `lr_multiplier`,
    `weight_decay_multiplier` and `is_last_layer` (prototypes) in addition to `params`.
    """
    blocks = [int(block[1]) for name, _ in student.named_parameters() if (block := BLOCK.search(name))]
    num_layers = 1 + max(blocks, default=-1)
    groups: dict[tuple, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            key = (
                name.split(".")[0],
                learning_rate_multiplier(name, num_layers, layerwise_decay, patch_embed_lr_multiplier),
                weight_decay_multiplier(name),
                "last_layer" in name,
            )
            groups[key].append(parameter)
    names = ("part", "lr_multiplier", "weight_decay_multiplier", "is_last_layer")
    return [{"params": params, **dict(zip(names, key, strict=True))} for key, params in groups.items()]


def build_optimizer(groups: list[dict], *, adam_beta1: float, adam_beta2: float) -> torch.optim.AdamW:
    """AdamW over `parameter_groups(...)`; learning rates and decays are written by `set_schedule` before each step."""
    # The fused kernel: on CPU torch would otherwise loop over parameters one by one.
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, betas=(adam_beta1, adam_beta2), fused=True)


def set_schedule(optimizer: torch.optim.Optimizer, now: ScheduleValues) -> None:
    """Write learning rate and weight decay of this step into every group."""
    for group in optimizer.param_groups:
        if group["part"] == "backbone":
            learning_rate = now.backbone_learning_rate
        else:
            learning_rate = now.last_layer_learning_rate if group["is_last_layer"] else now.learning_rate
        group["lr"] = learning_rate * group["lr_multiplier"]
        group["weight_decay"] = now.weight_decay * group["weight_decay_multiplier"]


def step_unless(optimizer: torch.optim.Optimizer, left_out: torch.Tensor) -> None:
    """
    A step that changes neither weights nor moments if `left_out`, a float32 scalar on the device, is 1. AdamW's fused
    kernel reads it on the device, so the host does not wait.
    """
    adamw = getattr(optimizer, "optimizer", optimizer)  # in the wrapper that Accelerate makes
    if isinstance(adamw, torch.optim.AdamW):  # DeepSpeed's own has already stepped, or left the step out
        # Weights may be in the memory of the host (FSDP2 with offloading).
        vars(adamw)["found_inf"] = left_out.to(adamw.param_groups[0]["params"][0].device)
    try:
        optimizer.step()
    finally:
        vars(adamw).pop("found_inf", None)


def clip_gradients(
    accelerator: Accelerator, students: Mapping[str, nn.Module], max_grad_norm: float, *, per_part: bool
) -> dict[str, torch.Tensor]:
    """
    Clip the gradients of each student to an L2 norm of `max_grad_norm`. Under DeepSpeed the backward pass has already
    clipped them, by one norm over all, and updated the weights or left the update out. Then this only returns the
    norm.

    Args:
        students: by name; the only one has an empty name.
        per_part: clip the backbone and each head by its own norm, as the original does; otherwise by one norm.

    Returns:
        Norms before clipping, scalars on the device: `grad_norm_<part>` for each part, or `grad_norm`. With several
        students, the name of the student comes first, as in `small/grad_norm`.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED or (not per_part and len(students) == 1):
        parameters = [parameter for network in students.values() for parameter in network.parameters()]
        return {"grad_norm": _whole(accelerator.clip_grad_norm_(parameters, max_grad_norm))}
    accelerator.unscale_gradients()  # once; Accelerate's own clipping would do it for every part
    norms: dict[str, torch.Tensor] = {}
    for name, network in students.items():
        parts = {f"grad_norm_{part}": module for part, module in network.named_children()} if per_part else None
        norms |= prefixed(
            {
                key: _whole(nn.utils.clip_grad_norm_(part.parameters(), max_grad_norm))
                for key, part in (parts or {"grad_norm": network}).items()
            },
            name,
        )
    return norms


def _whole(norm: torch.Tensor | float) -> torch.Tensor:
    """A norm of sharded gradients, gathered; DeepSpeed gives a plain number."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
