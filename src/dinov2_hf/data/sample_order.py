"""The order of images in training: endless, determined by a seed, and with free access to any position."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch

from ..named_objects import Registry
from .sample_seeds import mix_seed
from .weighted_turns import WeightedTurns


# An order is a function (dataset, pass_index, seed) -> row numbers of one pass over the data, as many as there are
# rows. An order that is registered with `per_process` also takes rank and world_size, and returns the rows of that
# process.
SAMPLE_ORDERS = Registry("order of samples")


class SampleKey(NamedTuple):
    """One entry of the order: the row to read, the seed of all random operations on it, and the index of the crop
    sizes of its step.
    """

    row: int
    seed: int
    crop_sizes: int = 0


@SAMPLE_ORDERS.register("global")
def global_order(dataset: Any, pass_index: int, seed: int) -> np.ndarray:
    """A new permutation of all rows for each pass."""
    # Negative positions belong to no sample, so no sample shares its seed with a permutation.
    generator = torch.Generator().manual_seed(mix_seed(seed, -1 - pass_index))
    return torch.randperm(len(dataset), generator=generator).numpy()


@SAMPLE_ORDERS.register("sharded", per_process=True)
def sharded_order(dataset: Any, pass_index: int, seed: int, rank: int, world_size: int) -> list[int]:
    """The order of the original: one permutation is divided among the processes once, and each reshuffles its own part
    on every pass. The last rows mod `world_size` of the permutation are never used.
    """
    permutation = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    part = permutation[rank::world_size][: len(dataset) // world_size].tolist()
    generator = torch.Generator().manual_seed(seed + rank + (pass_index << 24))
    # The inside-out shuffle draws one number per element, from the second on. randperm would give another order.
    shuffled = part[:1]
    for i, row in enumerate(part[1:], start=1):
        j = int(torch.randint(0, i + 1, (1,), generator=generator))
        shuffled.append(row)
        shuffled[i], shuffled[j] = shuffled[j], row
    return shuffled


class Passes:
    """The rows of a data set in an order, one pass after the other without end.

    Args:
        order: a function of `SAMPLE_ORDERS`, with its `name` there.
        dataset: the argument of the function that describes the rows.
        rows_per_pass: how many rows it must return.
        seed: seed of the order.
        of_process: rank and world size, for an order `per_process`.
    """

    def __init__(
        self,
        order: Callable[..., Sequence[int]],
        dataset: Any,
        *,
        name: str,
        rows_per_pass: int,
        seed: int,
        of_process: tuple[int, ...] = (),
    ):
        self.order, self.dataset, self.name = order, dataset, name
        self.rows_per_pass, self.seed, self.of_process = rows_per_pass, seed, of_process
        self._pass, self._rows = -1, cast(Sequence[int], [])

    def at(self, index: int) -> int:
        """The row at `index`, counted over all passes.

        Raises:
            ValueError: the order returns another number of rows than there are.
        """
        pass_index, place = divmod(index, self.rows_per_pass)
        if pass_index != self._pass:
            self._rows = self.order(self.dataset, pass_index, self.seed, *self.of_process)
            self._pass = pass_index
            if len(self._rows) != self.rows_per_pass:
                raise ValueError(
                    f"the order {self.name} gave {len(self._rows)} rows for a pass over {self.rows_per_pass}; it must"
                    " give as many, with repetitions where rows are left out."
                )
        return int(self._rows[place])


class Rows(Protocol):
    """Anything that gives the row at a position, such as `Passes`."""

    def at(self, position: int) -> int: ...


@dataclass
class PreTrainingBatchSampler:
    """Endless batches of `SampleKey` for one process.

    The passes over the data follow each other without a gap, so a batch that spans two passes may hold a row twice.
    Global batch t is positions s + t*B*W to s + (t+1)*B*W of that sequence, where s is `start_sample`. Rank r takes
    the r-th block of B of them. So the sequence is the same for every batch size and number of processes, even if they
    change during a run, and no row is dropped. (This is not true for an order `per_process`, which belongs to the
    rank.)

    Args:
        num_rows: rows in the data set.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        rank, world_size: this process and the number W of processes.
        start_sample: the position to begin with, counted in samples over all ranks; reached directly, without walking
            through the earlier ones. With an order `per_process`, a multiple of W.
        order: one of `SAMPLE_ORDERS`, or "package.module:function".
        dataset: the argument of the order that describes the rows, such as their labels; by default their number.
        mixture: for several data sets, their rows, instead of `order` and `dataset`.
        crop_sizes: turns that give the index of the crop sizes at a position; by default it is 0.

    Raises:
        ValueError: there are no rows, a global batch is larger than the data set, there is no such order or it does
            not return a pass, or another number is out of range.
    """

    num_rows: int
    batch_size: int
    _: KW_ONLY
    seed: int
    rank: int = 0
    world_size: int = 1
    start_sample: int = 0
    order: str = "global"
    dataset: Any = None
    mixture: Rows | None = None
    crop_sizes: WeightedTurns | None = None

    def __post_init__(self):
        if self.num_rows < 1:
            raise ValueError(f"num_rows is {self.num_rows}, but there must be at least one image to train on.")
        check_share(self.batch_size, self.rank, self.world_size)
        if self.batch_size * self.world_size > self.num_rows:
            raise ValueError(
                f"batch_size is {self.batch_size} on each of {self.world_size} processes, but the data set has only "
                f"{self.num_rows} images, so a batch would hold the same image twice; use a smaller batch or more "
                "images."
            )
        if self.start_sample < 0:
            raise ValueError(f"start_sample is {self.start_sample}, but it must be 0 or more.")
        named = SAMPLE_ORDERS.named(self.order)
        self.is_per_process = named.facts.get("per_process", False)
        if self.is_per_process and self.start_sample % self.world_size:
            raise ValueError(
                f"start_sample is {self.start_sample}, but with the order {self.order!r} it must be a multiple of "
                f"world_size ({self.world_size})."
            )
        self.rows = self.mixture or Passes(
            named.object,
            range(self.num_rows) if self.dataset is None else self.dataset,
            name=self.order,
            rows_per_pass=self.num_rows // (self.world_size if self.is_per_process else 1),
            seed=self.seed,
            of_process=(self.rank, self.world_size) if self.is_per_process else (),
        )

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in itertools.count():
            first_position = self.start_sample + (batch * self.world_size + self.rank) * self.batch_size
            first_index = first_position
            if self.is_per_process:
                first_index = self.start_sample // self.world_size + batch * self.batch_size
            keys = []
            for i in range(self.batch_size):
                position = first_position + i
                sizes = self.crop_sizes.at(position)[0] if self.crop_sizes else 0
                keys.append(SampleKey(self.rows.at(first_index + i), mix_seed(self.seed, position), sizes))
            yield keys


def check_share(batch_size: int, rank: int, world_size: int) -> None:
    """Raise a ValueError if a process has no images of a batch, or its rank is not one of the ranks."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but it must be at least 1.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}, but it must lie in [0, world_size), and world_size is {world_size}.")
