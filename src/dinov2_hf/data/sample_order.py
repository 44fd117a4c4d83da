"""The order in which images are seen: endless, fixed by a seed, and entered at any position at no cost."""

import itertools
from collections.abc import Iterator
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

    `order="global"`: pass e over the data is a permutation of all rows drawn from (seed, e), and the passes follow
    each other without a gap (so a batch that spans two passes may hold a row twice). Global batch t is positions
    s + t*B*W to s + (t+1)*B*W of that sequence, s being `start_sample`, of which rank r takes the r-th block of B. The
    order is therefore the same for every batch size and number of processes, also when they change on the way, and no
    row is dropped.

    `order="sharded"`: the original DINOv2 order. One permutation is dealt out to the ranks once; each rank reshuffles
    its own part on every pass. The last num_rows mod W rows of the permutation are never seen, and the order depends
    on the number of processes.

    Args:
        num_rows: rows in the data set.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        rank, world_size: this process and the number W of processes.
        start_sample: the position to begin with, counted in samples over all ranks; reached directly, without walking
            through the earlier ones. With order "sharded", a multiple of W.
        order: "global" or "sharded".

    Raises:
        ValueError: if there are no rows, if a global batch is larger than the data set, or if another number is out of
            range.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_sample: int = 0,
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
        if start_sample < 0:
            raise ValueError(f"start_sample is {start_sample}, but it must be 0 or more.")
        if order not in ("global", "sharded"):
            raise ValueError(f"order is {order!r}, but it must be 'global' or 'sharded'.")
        if order == "sharded" and start_sample % world_size:
            raise ValueError(
                f"start_sample is {start_sample}, but with order 'sharded' it must be a multiple of world_size"
                f" ({world_size})."
            )
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start_sample = start_sample
        self.order = order

    def __iter__(self) -> Iterator[list[SampleKey]]:
        if self.order == "global":
            rows_of_pass, rows_per_pass = self._global_pass, self.num_rows
        else:
            rows_of_pass, rows_per_pass = self._sharded_pass, self.num_rows // self.world_size
        current_pass, rows = -1, None
        for batch in itertools.count():
            first_position = self.start_sample + (batch * self.world_size + self.rank) * self.batch_size
            first_index = first_position
            if self.order == "sharded":
                first_index = self.start_sample // self.world_size + batch * self.batch_size
            keys = []
            for i in range(self.batch_size):
                pass_index, index = divmod(first_index + i, rows_per_pass)
                if pass_index != current_pass:
                    current_pass, rows = pass_index, rows_of_pass(pass_index)
                keys.append(SampleKey(int(rows[index]), mix_seed(self.seed, first_position + i)))
            yield keys

    def _global_pass(self, pass_index: int) -> np.ndarray:
        # Negative positions belong to no sample, so no sample shares its seed with a permutation.
        generator = torch.Generator().manual_seed(mix_seed(self.seed, -1 - pass_index))
        return torch.randperm(self.num_rows, generator=generator).numpy()

    def _sharded_pass(self, pass_index: int) -> list[int]:
        permutation = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed))
        part = permutation[self.rank :: self.world_size][: self.num_rows // self.world_size].tolist()
        generator = torch.Generator().manual_seed(self.seed + self.rank + (pass_index << 24))
        # The inside-out shuffle draws one number per element, from the second on; randperm would give another order.
        shuffled = part[:1]
        for i, row in enumerate(part[1:], start=1):
            j = int(torch.randint(0, i + 1, (1,), generator=generator))
            shuffled.append(row)
            shuffled[i], shuffled[j] = shuffled[j], row
        return shuffled
