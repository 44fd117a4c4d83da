"""Where the data loader workers of a stream are, so that a resumed run goes on there in place of reading again."""

from collections.abc import Iterator
from typing import Any, NamedTuple


class StreamPosition(NamedTuple):
    """Where a worker is in its rows of a data set, in numbers and texts alone, as JSON has them.

    Args:
        place: rows that it has given out, over all passes.
        pass_index: the pass over the data.
        rounds: how often it has given out its share of a full buffer in this pass.
        given: rows given out of the buffer since then.
        row: number in this pass of the first row that is to be read again: none before it is still wanted.
        source: the state of the data set before that row; None at the beginning of the pass.
    """

    place: int = 0
    pass_index: int = 0
    rounds: int = 0
    given: int = 0
    row: int = 0
    source: dict[str, Any] | None = None

    def at_next_pass(self) -> "StreamPosition":
        """After as many rows, at the beginning of a pass: for data that is no longer the same."""
        return StreamPosition(self.place, self.pass_index + 1)


# Of each worker, in each of the data sets.
Positions = list[list[StreamPosition]]


def positions_from(saved: list | None) -> Positions | None:
    """As a checkpoint tells them, in lists."""
    return saved and [[StreamPosition(*one) for one in of_worker] for of_worker in saved]


def before_rounds(batches: Iterator, positions: Positions | None, num_workers: int) -> Iterator:
    """Let each report tell where all workers were before the round of batches, one of each, that the next batch is of.

    Args:
        batches: pairs of a batch and a report, of whose one worker the report tells the position after it.
        positions: before the first round.
        num_workers: of a round.
    """
    round_so_far: Positions = []
    for batch, report in batches:
        round_so_far += report.positions
        if len(round_so_far) == num_workers:
            positions, round_so_far = round_so_far, []
        yield batch, report._replace(positions=positions)
