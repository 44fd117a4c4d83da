"""From a data set of undecoded images to an endless sequence of pretraining batches that can be entered anywhere.

What a batch holds depends on the run's seed and the position of its samples only. It does not depend on how often the
run was interrupted and, for data sets with random access, not on the number of workers either.
"""

import itertools
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .collator import BatchReport, PreTrainingCollator, PreTrainingSample, SkippedImage
from .decoding.channels import image_decoder
from .decoding.size_limits import UndecodableImage
from .loader_workers import check_shared_memory, outlive_preemption
from .reading.image_dataset import describe_row
from .sample_order import PreTrainingBatchSampler, SampleKey, mix_seed


MAX_TRIES_PER_SAMPLE = 20

Transform = Callable[[Image.Image | np.ndarray], tuple[torch.Tensor, torch.Tensor]]


class PreTrainingImages(Dataset):
    """A data set with random access, indexed by `SampleKey`.

    Args:
        dataset: the images, from `load_image_dataset`.
        image_column: the column that holds them.
        transform: makes the global and local crops of one image, such as `MultiCropTransform`.
        num_channels: channels to decode, see `image_decoder`.
    """

    def __init__(self, dataset: datasets.Dataset, image_column: str, transform: Transform, num_channels: int = 3):
        self.dataset = _undecoded_images(dataset, image_column)
        self.image_column = image_column
        self.transform = transform
        self.decode = image_decoder(num_channels)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> PreTrainingSample:
        """The sample of one key; the same in any process.

        An image that cannot be decoded is replaced by another row, drawn from the key's seed, and listed in the
        sample's `skipped`.

        Raises:
            ValueError: if 20 rows in a row cannot be decoded.
        """
        return _first_decodable(self._candidates(key), self.decode, self.transform, key.seed)

    def _candidates(self, key: SampleKey) -> Iterator[tuple[str, Any]]:
        replacements = random.Random(key.seed)
        row = key.row
        while True:
            value = self.dataset[row][self.image_column]
            yield describe_row(value, row), value
            row = replacements.randrange(len(self))


class PreTrainingStream(IterableDataset):
    """An endless stream of samples for one process, split over its data loader workers.

    Each pass shuffles the shards and, in a buffer, the rows. Every row takes up one place: an image that cannot be
    decoded is listed in `skipped` of the sample that takes its place, the next image of the stream that can (which
    comes again in its own place). So the place of a sample follows from counting, and a run is resumed exactly by
    passing over rows without decoding them. Row ids count the places of a worker.

    Args:
        dataset: the images, from `load_image_dataset(..., streaming=True)`.
        image_column: the column that holds them.
        transform: makes the global and local crops of one image, such as `MultiCropTransform`.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        rank, world_size: this process and the number of processes.
        shuffle_buffer_size: rows that a worker holds in memory to shuffle them.
        num_channels: channels to decode, see `image_decoder`.
        start_batch: the batch to begin with. Worker w of n yields batches w, w + n, w + 2n and so on, and all of them
            begin in the round of n batches that contains `start_batch`; `build_loader` drops what is before it.

    Raises:
        ValueError: if a number is out of range; while iterating, if a worker gets no rows or 20 rows in a row that
            cannot be decoded.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        image_column: str,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle_buffer_size: int = 1000,
        num_channels: int = 3,
        start_batch: int = 0,
    ):
        for name, value, smallest in (
            ("batch_size", batch_size, 1),
            ("shuffle_buffer_size", shuffle_buffer_size, 1),
            ("start_batch", start_batch, 0),
        ):
            if value < smallest:
                raise ValueError(f"{name} is {value}, but it must be at least {smallest}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, but it must lie in [0, world_size), and world_size is {world_size}.")
        self.dataset = _undecoded_images(dataset, image_column)
        self.image_column = image_column
        self.transform = transform
        self.decode = image_decoder(num_channels)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle_buffer_size = shuffle_buffer_size
        self.start_batch = start_batch

    @property
    def max_workers(self) -> int:
        """The number of shards this process reads, beyond which a worker would get no rows."""
        return split_dataset_by_node(self.dataset, self.rank, self.world_size).num_shards

    def __iter__(self) -> Iterator[PreTrainingSample]:
        worker_info = get_worker_info()
        worker, num_workers = (worker_info.id, worker_info.num_workers) if worker_info else (0, 1)
        first_place = self.start_batch // num_workers * self.batch_size
        rows = itertools.islice(enumerate(self._rows()), first_place, None)
        upcoming = deque()

        def candidates() -> Iterator[tuple[str, Any]]:
            for ahead in itertools.count():
                if ahead == len(upcoming):
                    upcoming.append(next(rows))
                place, value = upcoming[ahead]
                yield describe_row(value, f"{worker}:{place}"), value

        for place in itertools.count(first_place):
            own_batch, index = divmod(place, self.batch_size)
            batch = own_batch * num_workers + worker
            position = (batch * self.world_size + self.rank) * self.batch_size + index
            sample = _first_decodable(candidates(), self.decode, self.transform, mix_seed(self.seed, position))
            upcoming.popleft()
            # Any further images that failed are reported in their own places.
            yield sample._replace(skipped=sample.skipped[:1])

    def _rows(self) -> Iterator[Any]:
        for pass_index in itertools.count():
            # A new shuffle per pass, not `set_epoch`: workers share the memory of the epoch, but not their passes.
            shuffled = self.dataset.shuffle(
                seed=mix_seed(self.seed, -1 - pass_index), buffer_size=self.shuffle_buffer_size
            )
            is_empty = True
            for row in split_dataset_by_node(shuffled, self.rank, self.world_size):
                is_empty = False
                yield row[self.image_column]
            if is_empty:
                raise ValueError(
                    f"the data set gave no images to a data loader worker of rank {self.rank} of {self.world_size}; "
                    "use fewer workers or processes, or more images."
                )


def build_loader(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_column: str,
    transform: Transform,
    collator: PreTrainingCollator,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_sample: int = 0,
    num_workers: int = 0,
    sample_order: Literal["global", "sharded"] = "global",
    shuffle_buffer_size: int = 1000,
    num_channels: int = 3,
    pin_memory: bool = False,
) -> Iterator[tuple[dict[str, torch.Tensor], BatchReport]]:
    """Endless batches for one process, from sample number `start_sample` of all processes on.

    A stream is read again up to there, without decoding, and continues exactly only with the number of workers
    and processes it had before. A data set with random access needs neither.

    Args:
        dataset: the images, from `load_image_dataset`, streamed or not.
        image_column: the column that holds them, from `find_image_column`.
        transform: makes the crops of one image, such as `MultiCropTransform`.
        collator: makes a batch of samples.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        rank, world_size: this process and the number of processes.
        start_sample: images that all processes together have seen before; of a stream, a multiple of B times
            `world_size`.
        num_workers: processes that decode and augment, each on one thread; 0 does it in this process. A stream cannot
            use more of them than it has shards; a warning says so.
        sample_order: see `PreTrainingBatchSampler`; a stream has an order of its own.
        shuffle_buffer_size: see `PreTrainingStream`; a data set with random access has no use for it.
        num_channels: channels to decode, see `image_decoder`.
        pin_memory: put the batches in page-locked memory, for faster copies to a GPU.

    Returns:
        An iterator over (batch, report), as made by the collator.

    Raises:
        ValueError: as `PreTrainingBatchSampler` and `PreTrainingStream`, and where the batches that workers make ahead
            do not fit into shared memory.
    """
    # A loader draws a seed for its workers, which would otherwise come from the generator of the training.
    loader_generator = torch.Generator().manual_seed(seed)
    if not isinstance(dataset, datasets.IterableDataset):
        images = PreTrainingImages(dataset, image_column, transform, num_channels)
        sampler = PreTrainingBatchSampler(
            len(images),
            batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start_sample=start_sample,
            order=sample_order,
        )
        check_shared_memory(num_workers, batch_size * _sample_bytes(transform, num_channels))
        return iter(
            DataLoader(
                images,
                batch_sampler=sampler,
                collate_fn=collator,
                num_workers=num_workers,
                pin_memory=pin_memory,
                generator=loader_generator,
                worker_init_fn=outlive_preemption,
            )
        )
    start_batch, rest = divmod(start_sample, batch_size * world_size)
    if rest:
        raise ValueError(
            f"start_sample is {start_sample}, but for a stream it must be a multiple of batch_size x world_size"
            f" ({batch_size} x {world_size})."
        )
    stream = PreTrainingStream(
        dataset,
        image_column,
        transform,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        shuffle_buffer_size=shuffle_buffer_size,
        num_channels=num_channels,
        start_batch=start_batch,
    )
    if num_workers > stream.max_workers:
        warnings.warn(
            f"num_workers is {num_workers}, but the stream has only {stream.max_workers} shards for this process, so "
            f"{stream.max_workers} workers are used; store the data in more files to use more.",
            stacklevel=2,
        )
        num_workers = stream.max_workers
    check_shared_memory(num_workers, batch_size * _sample_bytes(transform, num_channels))
    loader = DataLoader(
        stream,
        batch_size=batch_size,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=loader_generator,
        worker_init_fn=outlive_preemption,
    )
    return itertools.islice(loader, start_batch % max(num_workers, 1), None)


def _sample_bytes(transform: Transform, num_channels: int) -> int:
    """Of the crops of one image, whatever its size."""
    side = 64
    empty = Image.new("RGB", (side, side)) if num_channels == 3 else np.zeros((side, side, num_channels), np.float32)
    with torch.random.fork_rng(devices=[]):
        return sum(crops.nbytes for crops in transform(empty))


def _undecoded_images(
    dataset: datasets.Dataset | datasets.IterableDataset, image_column: str
) -> datasets.Dataset | datasets.IterableDataset:
    # One column only, or reading a row would read and decode its other images as well.
    return dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))


def _first_decodable(
    candidates: Iterator[tuple[str, Any]], decode: Callable[[Any], Any], transform: Transform, seed: int
) -> PreTrainingSample:
    """The sample made from the first of the candidates, pairs of a row id and an image, that can be decoded."""
    skipped = []
    for row_id, value in itertools.islice(candidates, MAX_TRIES_PER_SAMPLE):
        try:
            image = decode(value)
        except UndecodableImage as error:
            skipped.append(SkippedImage(row_id, str(error)))
            continue
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed the GPUs, whose generators belong to the training.
            torch.default_generator.manual_seed(seed)
            global_crops, local_crops = transform(image)
        return PreTrainingSample(global_crops, local_crops, row_id, seed, tuple(skipped))
    raise ValueError(
        f"{MAX_TRIES_PER_SAMPLE} images in a row could not be decoded, the last of them {skipped[-1].row_id} "
        f"({skipped[-1].reason}); check that the image column holds images."
    )
