"""Trains a head on frozen dense features: AdamW, warm-up, decay, one progress bar."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import cos, isfinite, pi

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ...features import FeatureExtractor
from ...progress import Progress


def linear_decay(progress: float) -> float:
    return 1 - progress


def cosine_decay(progress: float) -> float:
    return (1 + cos(pi * progress)) / 2


def learning_rate_factor(
    step: int,
    num_steps: int,
    *,
    decay: Callable[[float], float],
    warmup_steps: int,
    warmup_ratio: float,
    final_ratio: float = 0.0,
) -> float:
    """The learning rate of a step divided by its peak, as in the schedules of mmcv.

    A decay from 1 to `final_ratio` over all steps, times a linear warm-up from `warmup_ratio` to 1 over the first
    `warmup_steps`.
    """
    factor = final_ratio + (1 - final_ratio) * decay(step / num_steps)
    if step < warmup_steps:
        factor *= 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return factor


def one_cycle_beta1(step: int, num_steps: int, low: float = 0.85, high: float = 0.95, rise: float = 0.3) -> float:
    """AdamW's first momentum: from `high` to `low` over the first 30 % of the steps and back, along cosines."""
    turn = rise * num_steps - 1
    done = step / turn if step <= turn else (num_steps - 1 - step) / max(num_steps - 1 - turn, 1)
    return high + (low - high) * (1 - cos(pi * min(max(done, 0.0), 1.0))) / 2


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A separate state of random numbers, so that evaluation does not change the numbers of a training around it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train_head(
    extractor: FeatureExtractor,
    head: nn.Module,
    batch_loss: Callable[[Tensor, Tensor, int], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    num_steps: int,
    learning_rate_factor: Callable[[int], float],
    beta1: Callable[[int], float] | None = None,
    max_grad_norm: float | None = None,
) -> list[float]:
    """Train for `num_steps`; gradients are averaged over the processes, if there are several.

    Args:
        head: the head, already in training mode; its parameters are those of the optimizer.
        batch_loss: maps pixel values, labels and the step to the loss.
        batches: at least as many as steps.
        learning_rate_factor, beta1: values at a step; the former is a factor of the optimizer's learning rate.

    Returns:
        The loss of every step (of this process).

    Raises:
        ValueError: a loss is not finite.
    """
    peak = [group["lr"] for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    several, device = extractor.world_size > 1, extractor.device
    losses = []
    bar = Progress(range(num_steps), desc="Training the head", unit="step", disable=not extractor.progress)
    for step, (pixel_values, labels) in zip(bar, batches, strict=False):
        for group, learning_rate in zip(optimizer.param_groups, peak, strict=True):
            group["lr"] = learning_rate * learning_rate_factor(step)
            if beta1 is not None:
                group["betas"] = (beta1(step), group["betas"][1])
        loss = batch_loss(pixel_values.to(device), labels.to(device), step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if several:
            for parameter in parameters:
                if parameter.grad is not None:  # the output of a DPT does not depend on all of its layers
                    parameter.grad = reduce(parameter.grad, "mean")
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        if not isfinite(losses[-1]):
            raise ValueError(
                f"the loss of step {step} is {losses[-1]}; the features of the model may not be finite, or"
                " `learning_rate` is too large."
            )
        if step % 10 == 0:
            recent = losses[-50:]
            bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", refresh=False)
    for buffer in head.buffers() if several else ():
        if buffer.is_floating_point():  # the running statistics of the batch norm
            buffer.copy_(reduce(buffer, "mean"))
    return losses
