"""The order in which images are seen: endless, fixed by a seed, and entered at any batch at no cost."""

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch

_MASK_64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


class SampleKey(NamedTuple):
    """One entry of the order: which row to read, and the seed of everything random that is done to it."""

    row: int
    seed: int


def mix_seed(seed: int, position: int) -> int:
    """A 64-bit seed for one position of a run (SplitMix64, output number `position` of the generator `seed`).

    Stateless, so the augmentation of a sample depends on the run's seed and the sample's position only, and not on
    workers, on the number of processes, or on where a run was resumed.
    """
    return _finalize(_finalize(seed & _MASK_64) + (position + 1) * _GOLDEN_GAMMA & _MASK_64)


def _finalize(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)


class PreTrainingBatchSampler:
    """Endless batches of `SampleKey` for one process.

    `order="global"`: pass e over the data is a permutation of all rows drawn from (seed, e), and the passes follow each
    other without a gap. Global batch t is positions t*B*W to (t+1)*B*W of that sequence, of which rank r takes the
    r-th block of B. The order is therefore the same for every number of processes with an equal global batch, and no
    row is dropped.

    `order="sharded"`: the original DINOv2 order. One permutation is dealt out to the ranks once; each rank reshuffles
    its own part on every pass. The last num_rows mod W rows of the permutation are never seen, and the order depends on
    the number of processes.

    Args:
        num_rows: rows in the data set.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        rank, world_size: this process and the number W of processes.
        start_batch: the batch to begin with; reached directly, without walking through the earlier ones.
        order: "global" or "sharded".

    Raises:
        ValueError: if there are no rows, if a global batch is larger than the data set, or if a number is out of range.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
        order: Literal["global", "sharded"] = "global",
    ):
        if num_rows < 1:
            raise ValueError(f"num_rows is {num_rows}, but there must be at least one image to train on.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but it must be at least 1.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but it must lie in [0, world_size), and world_size is {world_size}.")
        if batch_size * world_size > num_rows:
            raise ValueError(
                f"batch_size is {batch_size} on each of {world_size} processes, but the data set has only {num_rows} "
                "images, so a batch would hold the same image twice; use a smaller batch or more images."
            )
        if start_batch < 0:
            raise ValueError(f"start_batch is {start_batch}, but it must be 0 or more.")
        if order not in ("global", "sharded"):
            raise ValueError(f"order is {order!r}, but it must be 'global' or 'sharded'.")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_batch = start_batch
        self.order = order

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in itertools.count(self.start_batch):
            ...
