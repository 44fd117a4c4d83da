"""The rows of a stream: in which order, and that it is entered again where it was left without reading it all."""

import itertools
import json

import datasets
import numpy as np
import pytest

from dinov2_hf.data.sample_seeds import mix_seed
from dinov2_hf.data.stream_positions import StreamPosition
from dinov2_hf.data.stream_rows import StreamRows


ROWS_OF_SHARD = 7


def stream(num_shards: int, read: list | None = None) -> datasets.IterableDataset:
    """Rows that are numbered, and noted in `read` when they are read."""

    def note(row: dict) -> dict:
        if read is not None:
            read.append(row["number"])
        return {"number": row["number"]}

    numbers = datasets.Dataset.from_dict({"number": list(range(num_shards * ROWS_OF_SHARD))})
    return numbers.to_iterable_dataset(num_shards=num_shards).map(note)


def take(count: int, rows: StreamRows, position: StreamPosition | None = None) -> list:
    saved = json.loads(json.dumps(position or StreamPosition()))
    return list(itertools.islice(rows.start_at(StreamPosition(*saved)), count))


def numbers(rows: list) -> list[int]:
    return [row.value["number"] for row in rows]


def shuffled(rows: list[int], buffer_size: int, generator: np.random.Generator) -> list[int]:
    """A pass through a buffer of which, whenever it is full, one half is given out in a new order."""
    buffer, given = [], []
    for row in rows:
        buffer.append(row)
        if len(buffer) == buffer_size:
            buffer = [buffer[place] for place in generator.permutation(buffer_size)]
            half = buffer_size - buffer_size // 2
            given, buffer = given + buffer[:half], buffer[half:]
    return given + [buffer[place] for place in generator.permutation(len(buffer))]


@pytest.mark.parametrize("buffer_size", [1, 2, 5, 12, 100])
def test_a_pass_shuffles_shards_and_rows(buffer_size):
    found = numbers(take(2 * 42, StreamRows(stream(6), 3, buffer_size)))
    for number, one_pass in enumerate((found[:42], found[42:])):
        seed = mix_seed(3, -1 - number)
        in_order = [row["number"] for row in stream(6).shuffle(seed=seed, buffer_size=1)]
        assert one_pass == shuffled(in_order, buffer_size, np.random.default_rng(seed))
        assert sorted(one_pass) == list(range(42))


@pytest.mark.parametrize("buffer_size", [1, 2, 5, 12, 100])
@pytest.mark.parametrize(
    "share",
    [(0, 1, 0, 0), (0, 1, 1, 2), (1, 2, 0, 0), (1, 2, 2, 3), (2, 4, 0, 0), (1, 4, 1, 2)],
    ids=lambda share: "rank {} of {}, worker {} of {}".format(*share),
)
def test_every_position_can_be_entered(buffer_size, share):
    """By several processes and workers; of 4 processes each reads a fourth of the rows of all shards."""
    rows = StreamRows(stream(6), 3, buffer_size, *share)
    uninterrupted = take(50, rows)
    for place in range(0, 50, 7):
        again = take(49 - place, rows, uninterrupted[place].position)
        assert numbers(again) == numbers(uninterrupted[place + 1 :])
        assert [row.place for row in again] == list(range(place + 1, 50))


@pytest.mark.parametrize("share", [(6, 2, 3), (5, 2, 2)])
def test_processes_and_workers_share_all_rows(share):
    num_shards, world_size, num_workers = share
    found = []
    for rank, worker in itertools.product(range(world_size), range(num_workers)):
        rows = StreamRows(stream(num_shards), 3, 4, rank, world_size, worker, num_workers).start_at(StreamPosition())
        found += numbers(itertools.takewhile(lambda row: row.position.pass_index == 0, rows))
    assert sorted(found) == list(range(num_shards * ROWS_OF_SHARD))


@pytest.mark.parametrize("buffer_size", [1, 8, 64])
def test_only_what_is_left_is_read_again(buffer_size):
    """As a fresh start reads for as many rows; and with a buffer what is in it, from its oldest row on."""
    read = {"fresh": []}
    take(100, StreamRows(stream(120, read["fresh"]), 3, buffer_size))
    for place in (200, 400, 700):
        position = take(place, StreamRows(stream(120), 3, buffer_size))[-1].position
        read["again"] = []
        assert len(take(100, StreamRows(stream(120, read["again"]), 3, buffer_size), position)) == 100
        assert len(read["again"]) - len(read["fresh"]) <= (1 if buffer_size == 1 else 6 * buffer_size)


def test_other_data_than_before_is_an_error():
    position = take(30, StreamRows(stream(6), 3, 8))[-1].position
    with pytest.raises(ValueError, match="cannot continue where it stopped .*, because the data or the version of"):
        take(20, StreamRows(stream(6).take(10), 3, 8), position)
    with pytest.raises(ValueError, match="fewer rows for this worker than when"):
        take(20, StreamRows(stream(6), 3, 8), position._replace(rounds=100))
