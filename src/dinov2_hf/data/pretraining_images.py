"""Makes samples, the crops of single images, from a data set of undecoded images (random access or streamed)."""

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import datasets
import fsspec.asyn
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .collator import PreTrainingSample, SkippedImage
from .decoding.channels import image_decoder
from .reading.image_columns import describe_row
from .reading.mixed_images import MixedImages
from .replacements import first_decodable
from .sample_order import SampleKey, check_share
from .sample_seeds import mix_seed
from .stream_positions import Positions, StreamPosition
from .stream_rows import StreamRow, StreamRows
from .weighted_turns import WeightedTurns


Transform = Callable[[Image.Image | np.ndarray], tuple[torch.Tensor, ...]]
Decode = Callable[[Any], Any]


class PreTrainingImages(Dataset):
    """A data set with random access, indexed by `SampleKey`.

    Args:
        dataset: the images, from `load_image_dataset`.
        image_column: the column of images.
        transform: makes the global and local crops of one image, such as `MultiCropTransform`; or several transforms,
            for crops of several sizes.
        num_channels: channels to decode, see `image_decoder`.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_column: str,
        transform: Transform | Sequence[Transform],
        num_channels: int = 3,
    ):
        self.dataset = _undecoded_images(dataset, image_column)
        self.image_column = image_column
        self.crop_makers = _crop_makers(transform, num_channels)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> PreTrainingSample:
        """The sample of one key, the same in any process.

        An image that cannot be decoded is replaced by another row, drawn from the key's seed, and listed in the
        sample's `skipped`.

        Raises:
            ValueError: if 20 rows in a row cannot be decoded.
        """
        return _sample_of_first(self._candidates(key), *self.crop_makers[key.crop_sizes], key.seed)

    def _candidates(self, key: SampleKey) -> Iterator[tuple[str, Any]]:
        replacements = random.Random(key.seed)
        row = key.row
        while True:
            value = self.dataset[row][self.image_column]
            yield describe_row(value, row), value
            row = replacements.randrange(len(self))


@dataclass(eq=False)
class PreTrainingStream(IterableDataset):
    """An endless stream of samples for one process, split over its data loader workers.

    Rows come in the order of `StreamRows`. Every row has one place. If an image cannot be decoded, the next decodable
    image of the stream takes its place, with the first one listed in `skipped` (and that next image comes again in its
    own place). So the place of a sample follows from counting. Every sample has the `positions` of its worker after
    it, from which the stream continues exactly. Row ids count the places of a worker.

    Args:
        dataset, image_column, transform, num_channels: as in `PreTrainingImages`; the data set is streamed. Several
            data sets have their own passes, and `WeightedTurns` gives the turns, for all processes together.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        rank, world_size: this process and the number of processes.
        shuffle_buffer_size: rows that a worker holds in memory to shuffle them.
        start_batch: the batch to begin with. Worker w of n yields batches w, w + n, w + 2n and so on. All of them
            begin in the round of n batches that contains `start_batch`; `build_loader` drops the batches before it.
        positions: the position of every worker before that round; without them the earlier rows are read again.
        crop_sizes: see `PreTrainingBatchSampler`.
        images_per_turn: for several data sets, consecutive images from the same one: 1, or those of a step.

    Raises:
        ValueError: if a number is out of range; while iterating, if a worker gets no rows or 20 rows in a row that
            cannot be decoded, or if a position belongs to another place or to other data.
    """

    dataset: datasets.IterableDataset | MixedImages
    image_column: str
    transform: Transform | Sequence[Transform]
    _: KW_ONLY
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle_buffer_size: int = 1000
    num_channels: int = 3
    start_batch: int = 0
    positions: Positions | None = None
    crop_sizes: WeightedTurns | None = None
    images_per_turn: int = 1

    def __post_init__(self):
        check_share(self.batch_size, self.rank, self.world_size)
        if self.shuffle_buffer_size < 1 or self.start_batch < 0:
            raise ValueError(
                f"shuffle_buffer_size is {self.shuffle_buffer_size} and start_batch is {self.start_batch}, but they "
                "must be at least 1 and 0."
            )
        parts, self.turns = [self.dataset], None
        if isinstance(self.dataset, MixedImages):
            parts = self.dataset.parts
            self.turns = WeightedTurns(self.dataset.weights, self.seed, self.images_per_turn)
        self.parts = [_undecoded_images(part, self.image_column) for part in parts]
        self.crop_makers = _crop_makers(self.transform, self.num_channels)

    @property
    def max_workers(self) -> int:
        """The number of shards this process reads, beyond which a worker would get no rows."""
        return min(split_dataset_by_node(part, self.rank, self.world_size).num_shards for part in self.parts)

    def __iter__(self) -> Iterator[PreTrainingSample]:
        worker_info = get_worker_info()
        worker, num_workers = (worker_info.id, worker_info.num_workers) if worker_info else (0, 0)
        # A worker may be forked while the process holds this lock of its remote files. Nothing would release it.
        fsspec.asyn.reset_lock()
        first_place = self.start_batch // max(num_workers, 1) * self.batch_size
        share = (self.shuffle_buffer_size, self.rank, self.world_size, worker, num_workers)
        rows = [StreamRows(part, self.seed + number, *share) for number, part in enumerate(self.parts)]
        positions = self.positions[worker] if self.positions else [StreamPosition()] * len(rows)
        taken = sum(position.place for position in positions)
        if len(positions) != len(rows) or (self.positions and taken != first_place):
            raise ValueError(
                f"the positions of data loader worker {worker} are after {taken} images of {len(positions)} data"
                f" set(s), but the run has taken {first_place} of {len(rows)}; continue from another checkpoint."
            )
        streams = [_Upcoming(*pair) for pair in zip(rows, positions, strict=True)]
        for place in itertools.count(taken):
            own_batch, index = divmod(place, self.batch_size)
            batch = own_batch * max(num_workers, 1) + worker
            in_run = (batch * self.world_size + self.rank) * self.batch_size + index
            number = self.turns.at(in_run)[0] if self.turns else 0
            stream = streams[number]
            if place < first_place:  # these rows are read again
                stream.take()
                continue
            name = f"{number}:{worker}" if self.turns else f"{worker}"
            candidates = (
                (describe_row(row.value[self.image_column], f"{name}:{row.place}"), row.value[self.image_column])
                for row in stream.ahead()
            )
            decode, transform = self.crop_makers[self.crop_sizes.at(in_run)[0] if self.crop_sizes else 0]
            sample = _sample_of_first(candidates, decode, transform, mix_seed(self.seed, in_run))
            stream.take()
            # Further images that failed are reported in their own places.
            yield sample._replace(skipped=sample.skipped[:1], positions=[stream.position for stream in streams])


class _Upcoming:
    """Rows from a position on. One can look at them before taking them."""

    def __init__(self, rows: StreamRows, position: StreamPosition):
        self.position = position
        self._rows = rows.start_at(position)
        self._seen: deque[StreamRow] = deque()

    def ahead(self) -> Iterator[StreamRow]:
        """The next rows, without end."""
        for index in itertools.count():
            if index == len(self._seen):
                self._seen.append(next(self._rows))
            yield self._seen[index]

    def take(self) -> None:
        """Take the next row. `position` is then the position after it."""
        row = self._seen.popleft() if self._seen else next(self._rows)
        self.position = row.position


def _crop_makers(transform: Transform | Sequence[Transform], num_channels: int) -> list[tuple[Decode, Transform]]:
    """Each transform with the decoder for its images, which may decode them smaller."""
    transforms = transform if isinstance(transform, Sequence) else [transform]
    return [(image_decoder(num_channels, getattr(one, "reduction", None)), one) for one in transforms]


def _undecoded_images(
    dataset: datasets.Dataset | datasets.IterableDataset, image_column: str
) -> datasets.Dataset | datasets.IterableDataset:
    # Only one column. Otherwise reading a row would also read and decode its other images.
    return dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))


def _sample_of_first(
    candidates: Iterator[tuple[str, Any]], decode: Decode, transform: Transform, seed: int
) -> PreTrainingSample:
    """The sample made from the first of the candidates, pairs of a row id and an image, that can be decoded."""
    row_id, image, failed = first_decodable(candidates, decode)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the generators of the GPUs. These belong to the training.
        torch.default_generator.manual_seed(seed)
        crops = transform(image)
    skipped = tuple(SkippedImage(*one) for one in failed)
    return PreTrainingSample(crops[0], crops[1], row_id, seed, skipped, crops[2] if len(crops) > 2 else None)
