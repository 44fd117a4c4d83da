"""Images with a label for every pixel: rows of a dataset to pairs of an image and a map of the same size."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ...data.decoding.channels import image_decoder
from ...data.decoding.undecodable import UndecodableImage
from ...data.reading.image_columns import describe_row
from ...data.sample_order import PreTrainingBatchSampler, SampleKey
from ...features import require_column
from .head_training import seeded


MAX_TRIES = 20


class UnusableRow(ValueError):
    """A row whose image or map cannot be decoded."""


class PixelPairs(Dataset):
    """
    Row `i` is an image (C, H, W), uint8 or on its scale, and its map (H, W), as tv_tensors, so that transforms move
    both alike.

    Args:
        dataset: a map-style `datasets.Dataset` or a sequence of dict rows.
        image_column, map_column: names of the columns. A format or transform set on a `datasets.Dataset` is not
            applied.
        map_field: the name under which the user passed `map_column`, for messages.
        num_channels: of the model; images are decoded to as many.
        decode_map: from the value of a row to an array (H, W); raises `UndecodableImage` with the reason if it cannot.

    Raises:
        ValueError: at once, as `require_column`; for a row, if image or map cannot be decoded (`UnusableRow`), or
            their sizes differ.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | Sequence[dict[str, Any]],
        image_column: str,
        map_column: str,
        map_field: str,
        num_channels: int,
        decode_map: Callable[[Any], np.ndarray],
    ):
        columns = {"image_column": image_column, map_field: map_column}
        for field, column in columns.items():
            require_column(dataset, column, field)
        if isinstance(dataset, datasets.Dataset):
            dataset = dataset.select_columns(list(columns.values())).with_format(None)
            # Undecoded, so that a broken image fails here, where the row is known, and not inside `datasets`.
            for column in columns.values():
                if isinstance(dataset.features[column], datasets.Image):
                    dataset = dataset.cast_column(column, datasets.Image(decode=False))
        self.dataset = dataset
        self.image_column, self.map_column, self.map_field = image_column, map_column, map_field
        self.decode_image, self.decode_map = image_decoder(num_channels), decode_map

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        values = self.dataset[row]
        image = self._decode(self.decode_image, values, row, self.image_column, "image_column")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: PIL's own memory is read-only
        labels = self.labels(row, values)
        if pixels.shape[-2:] != labels.shape:
            raise ValueError(
                f"`{self.map_field}` {self.map_column!r} of {describe_row(values[self.map_column], row)} is"
                f" {labels.shape[0]} x {labels.shape[1]}, but its image is {pixels.shape[1]} x {pixels.shape[2]};"
                " both must have the same size."
            )
        return tv_tensors.Image(pixels), tv_tensors.Mask(labels)

    def labels(self, row: int, values: Mapping[str, Any] | None = None) -> Tensor:
        """The map (H, W) alone."""
        values = self.dataset[row] if values is None else values
        return torch.from_numpy(self._decode(self.decode_map, values, row, self.map_column, self.map_field))

    def _decode(self, decode, values, row, column, field):
        try:
            return decode(values[column])
        except UndecodableImage as reason:
            raise UnusableRow(
                f"`{field}` {column!r} of {describe_row(values[column], row)} cannot be used ({reason}); repair it or"
                " remove the row from the dataset."
            ) from None


class TrainingCrops(Dataset):
    """Pairs under a random transform, seeded by each sample's key: the same on any number of workers.

    A row that cannot be decoded is replaced by the next one, because a training is long; after 20 of them it stops.
    """

    def __init__(self, pairs: PixelPairs, transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.pairs, self.transform = pairs, transform

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        with seeded(key.seed):
            image, labels = self.transform(*self._next_pair(key.row))
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)

    def _next_pair(self, row: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        for attempt in range(MAX_TRIES):
            try:
                return self.pairs[(row + attempt) % len(self.pairs)]
            except UnusableRow as error:
                reason = error
        raise reason


def training_batches(
    pairs: PixelPairs,
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    train_batch_size: int,
    seed: int,
    num_workers: int,
    processes: PartialState | None,
) -> DataLoader:
    """Endless batches of this process's share of `train_batch_size` images, in an order that the seed fixes.

    Raises:
        ValueError: what `check_train_batch_size` raises.
    """
    rank, world_size = (processes.process_index, processes.num_processes) if processes is not None else (0, 1)
    check_train_batch_size(train_batch_size, len(pairs), processes)
    sampler = PreTrainingBatchSampler(
        len(pairs), train_batch_size // world_size, seed=seed, rank=rank, world_size=world_size
    )
    return DataLoader(
        TrainingCrops(pairs, transform),
        batch_sampler=sampler,
        num_workers=num_workers,
        # Its own: the loader draws a seed, and evaluation must not move the random numbers of a training around it.
        generator=torch.Generator(),
    )


def check_train_batch_size(train_batch_size: int, num_images: int, processes: PartialState | None) -> None:
    """`ValueError` where a training step would hold more images than there are, or processes not as many each."""
    if not 1 <= train_batch_size <= num_images:
        raise ValueError(
            f"`train_batch_size` is {train_batch_size}, but must be from 1 to the {num_images} images of the training"
            " data."
        )
    num_processes = 1 if processes is None else processes.num_processes
    if train_batch_size % num_processes:
        raise ValueError(
            f"`train_batch_size` is {train_batch_size}, which does not divide among {num_processes} processes."
        )


def pairs_of_process(
    pairs: PixelPairs, num_workers: int, processes: PartialState | None
) -> tuple[range, Iterable[tuple[Tensor, Tensor]]]:
    """This process's rows, and their pairs one by one."""
    rank, world_size = (processes.process_index, processes.num_processes) if processes is not None else (0, 1)
    rows = range(rank, len(pairs), world_size)
    return rows, DataLoader(Subset(pairs, rows), batch_size=None, num_workers=num_workers, generator=torch.Generator())


class PixelNormalization:
    """Pixels on the scale 0 to 255 to what the model takes, by the values of its image processor.

    Raises:
        ValueError: the image processor's `image_mean` or `image_std` is not of as many channels as the model.
    """

    def __init__(self, image_processor: Any, num_channels: int):
        self.scale = image_processor.rescale_factor if image_processor.do_rescale else 1.0
        self.mean, self.std = [0.0] * num_channels, [1.0] * num_channels
        if image_processor.do_normalize:
            self.mean, self.std = list(image_processor.image_mean), list(image_processor.image_std)
        for field, values in (("image_mean", self.mean), ("image_std", self.std)):
            if len(values) != num_channels:
                raise ValueError(
                    f"the image processor's {field} has {len(values)} values, but the model takes images of"
                    f" {num_channels} channels; one value for each is needed."
                )

    def __call__(self, image: Tensor) -> Tensor:
        """(..., C, H, W) to float32."""
        return F.normalize(image.as_subclass(Tensor).float() * self.scale, self.mean, self.std)
