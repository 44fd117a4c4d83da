"""The exponential moving average that makes the teacher."""

import torch
from torch import nn

from .sharded_weights import drop_stale_copies, local_share


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """
    `ema = momentum * ema + (1 - momentum) * module`, for every parameter, in place.

    Both modules have the same parameters in the same order, sharded alike: every process averages its own share, and
    nothing is sent. Weights must be float32: in bfloat16 an average with momentum 0.99 and above does not move at all,
    because a change of 1 % is below what 8 bits resolve.

    Args:
        momentum: in [0, 1].
    """
    moved = [local_share(parameter) for parameter in average.parameters()]
    parameters = [local_share(parameter) for parameter in module.parameters()]
    torch._foreach_lerp_(moved, parameters, 1 - momentum)
    drop_stale_copies(average)
