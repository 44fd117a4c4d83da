"""Positions of the data loader workers of a stream, so that a resumed run continues there without reading again."""

from collections.abc import Iterator
from typing import Any, NamedTuple


class StreamPosition(NamedTuple):
    """The position of a worker in its rows of a data set, as JSON values.

    Args:
        place: rows that it has yielded, over all passes.
        pass_index: the pass over the data.
        rounds: how often it has yielded its share of a full buffer in this pass.
        given: rows yielded from the buffer since then.
        row: number in this pass of the first row that must be read again; no earlier row is needed any more.
        source: the state of the data set before that row; None at the beginning of the pass.
    """

    place: int = 0
    pass_index: int = 0
    rounds: int = 0
    given: int = 0
    row: int = 0
    source: dict[str, Any] | None = None

    def at_next_pass(self) -> "StreamPosition":
        """The position after the same number of rows, at the beginning of a pass, for data that has changed."""
        return StreamPosition(self.place, self.pass_index + 1)


# The positions of each worker, in each of the data sets.
Positions = list[list[StreamPosition]]


def positions_from(saved: list | None) -> Positions | None:
    """Positions from the lists of a checkpoint."""
    return saved and [[StreamPosition(*one) for one in of_worker] for of_worker in saved]


def before_rounds(batches: Iterator, positions: Positions | None, num_workers: int) -> Iterator:
    """Give each report the positions of all workers before the round that contains the next batch.

    Args:
        batches: pairs of a batch and a report; the report has the position of its worker after the batch.
        positions: positions before the first round.
        num_workers: workers, each of which makes one batch of a round.
    """
    round_so_far: Positions = []
    for batch, report in batches:
        round_so_far += report.positions
        if len(round_so_far) == num_workers:
            positions, round_so_far = round_so_far, []
        yield batch, report._replace(positions=positions)
