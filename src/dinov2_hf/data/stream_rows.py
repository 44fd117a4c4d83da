"""The rows of a stream that one data loader worker reads: endless, shuffled, and resumable."""

import itertools
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node

from .sample_seeds import mix_seed
from .stream_positions import StreamPosition


class StreamRow(NamedTuple):
    """A row, the number of rows that the worker has yielded before it, and the worker's position after it."""

    place: int
    value: dict[str, Any]
    position: StreamPosition


@dataclass
class StreamRows:
    """The rows of one worker, pass after pass. Each pass shuffles the shards and, in a buffer, the rows.

    When the buffer is full it is shuffled, one half is yielded and the other kept, as in `IterableDataset.shuffle` of
    datasets 5.2. The seed alone determines which row numbers are in the buffer. So a position need not contain the
    buffer: the rows are read again, from the oldest one that is still needed. With a buffer of S, this is about
    log2(S) x S / 2 rows earlier.

    Args:
        dataset: the stream, with the needed columns.
        seed: seed of the order.
        buffer_size: S, rows in the buffer.
        rank, world_size: the process and the number of processes. They share the shards, or the rows if the number of
            shards is not a multiple of the number of processes.
        worker, num_workers: worker of the process; `num_workers` 0 is the process itself.
    """

    dataset: datasets.IterableDataset
    seed: int
    buffer_size: int
    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 0

    def start_at(self, position: StreamPosition) -> Iterator[StreamRow]:
        """The rows from a position on, without end.

        Raises:
            ValueError: a pass has no rows, or fewer than when the position was recorded.
        """
        for pass_index in itertools.count(position.pass_index):
            for row in self._one_pass(position):
                position = row.position
                yield row
            position = StreamPosition(position.place, pass_index + 1)

    def _one_pass(self, position: StreamPosition) -> Iterator[StreamRow]:
        generator, rounds, given = self._generator(position.pass_index), position.rounds, position.given
        per_round = self.buffer_size - self.buffer_size // 2
        kept, known = np.empty(0, dtype=int), 0  # numbers of rows in the buffer, and how many were read for it
        for _ in range(rounds):
            upto = known + self.buffer_size - len(kept)
            numbers = np.concatenate([kept, np.arange(known, upto)])
            kept, known = numbers[generator.permutation(self.buffer_size)][per_round:], upto
        dataset, rows = self._read(position.pass_index, position.source)
        place, read, wanted, held = position.place, position.row, set(kept.tolist()), {}
        states = deque([(read, position.source)])
        is_full = True
        while is_full:
            numbers = kept.tolist()
            while len(numbers) < self.buffer_size and (row := next(rows, None)) is not None:
                if read >= known:
                    numbers.append(read)
                if read >= known or read in wanted:
                    held[read] = row
                read += 1
            is_full, known = len(numbers) == self.buffer_size, read
            if read == 0:
                raise ValueError(
                    f"the data set gave no images to a data loader worker of rank {self.rank} of {self.world_size}; "
                    "use fewer workers or processes, or more images."
                )
            numbers = np.array(numbers, dtype=int)[generator.permutation(len(numbers))]
            count = per_round if is_full else len(numbers)
            oldest = np.append(np.minimum.accumulate(numbers[::-1])[::-1], read)
            for number in numbers[:given].tolist():
                held.pop(number, None)
            for index in range(given, count):
                while len(states) > 1 and states[1][0] <= oldest[index + 1]:
                    states.popleft()
                value = held.pop(int(numbers[index]), None)
                if value is None:
                    raise ValueError(
                        "the data set has fewer rows for this worker than when the run was saved; resume with the data"
                        " of that run."
                    )
                position = StreamPosition(place + 1, position.pass_index, rounds, index + 1, *states[0])
                yield StreamRow(place, value, position)
                place += 1
            kept, rounds, given = numbers[count:], rounds + 1, 0
            states.append((read, dataset.state_dict()))

    def _generator(self, pass_index: int) -> np.random.Generator:
        """The generator for the order in the buffer. It draws like `datasets`, so that earlier runs can continue."""
        generator = np.random.default_rng(mix_seed(self.seed, -1 - pass_index))
        if not self.num_workers:
            return generator
        return np.random.default_rng(generator.integers(0, 1 << 63) - self.worker)

    def _read(
        self, pass_index: int, state: dict[str, Any] | None
    ) -> tuple[datasets.IterableDataset, Iterator[dict[str, Any]]]:
        """This worker's share of a pass in the order of the shards, and its rows from a state on."""
        # A new shuffle for each pass instead of `set_epoch`: workers share the memory of the epoch, but not their
        # passes.
        dataset = self.dataset.shuffle(seed=mix_seed(self.seed, -1 - pass_index), buffer_size=1)
        if dataset.num_shards % self.world_size == 0:
            dataset = dataset.shard(self.world_size, self.rank, contiguous=False)
        else:
            dataset = split_dataset_by_node(dataset, self.rank, self.world_size)
        if self.num_workers:
            dataset = dataset.shard(self.num_workers, self.worker, contiguous=False)
        if state is not None:
            dataset.load_state_dict(state)

        def rows() -> Iterator[dict[str, Any]]:
            # Not `iter(dataset)`, which would divide the shards again in a worker.
            batches = dataset.iter(batch_size=1)
            with _loading_state():
                first = list(itertools.islice(batches, 1))
            for batch in itertools.chain(first, batches):
                yield {column: values[0] for column, values in batch.items()}

        return dataset, rows()


@contextmanager
def _loading_state() -> Iterator[None]:
    """Suppress the warning about rows that are lost with a buffer: a buffer of one row is empty between rows."""
    logger = logging.getLogger(datasets.iterable_dataset.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"the run cannot continue where it stopped in the stream ({type(error).__name__}: {error}), because the"
            " data or the version of `datasets` has changed since then; resume with the same data and version."
        ) from error
    finally:
        logger.setLevel(level)
