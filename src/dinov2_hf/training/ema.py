"""The exponential moving average of the teacher."""

import torch
from torch import nn

from .processes.sharded_weights import drop_stale_copies, local_share


@torch.no_grad()
def update_ema(average: nn.Module, module: nn.Module, momentum: float, left_out: torch.Tensor | None = None) -> None:
    """
    `ema = momentum * ema + (1 - momentum) * module`, for every parameter, in place.

    Both modules have the same parameters in the same order, sharded in the same way: every process averages its own
    share, and nothing is sent. Weights must be float32: in bfloat16 an average with momentum 0.99 and above does not
    change at all, because a change of 1 % is below the resolution of 8 bits.

    Args:
        momentum: in [0, 1].
        left_out: `Step.left_out`: a float32 scalar on the device. If it is 1 nothing changes, and the host does not
            wait for it.
    """
    moved = [local_share(parameter) for parameter in average.parameters()]
    parameters = [local_share(parameter) for parameter in module.parameters()]
    # ema + (1 - momentum) * (module - ema) is a step of SGD. Its fused kernel reads on the device whether to take it.
    torch._fused_sgd_(
        moved, parameters, [], lr=1 - momentum, weight_decay=1.0, maximize=True, momentum=0.0, dampening=0.0,
        nesterov=False, is_first_step=False,
        found_inf=None if left_out is None else left_out.to(moved[0].device),
    )  # fmt: skip
    drop_stale_copies(average)
