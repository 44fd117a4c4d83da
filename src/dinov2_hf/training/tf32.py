"""
TF32: NVIDIA GPUs since Ampere multiply float32 matrices several times faster where 10 bits of the mantissa are enough.

The original trains with it. What is measured of a model is multiplied in float32 as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def allow_tf32(device: torch.device) -> None:
    """From here on, where `device` is a GPU; on other devices nothing changes."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, products of float32 matrices are exact to float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
