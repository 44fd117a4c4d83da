"""Images with a label for every pixel: each row of a dataset gives an image and a map of the same size."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ...data.decoded_images import undecoded_columns
from ...data.decoding.channels import NPY_BEGINNING, image_decoder, read_npy
from ...data.decoding.file_content import read_content
from ...data.decoding.rgb import load_pixels, open_image, turn_upright
from ...data.decoding.undecodable import UndecodableImage, undecodable_on_error
from ...data.reading.image_columns import describe_row
from ...data.replacements import first_decodable
from ...data.sample_order import PreTrainingBatchSampler, SampleKey
from ...features import DatasetOrRows, FeatureExtractor
from ...models import DINOv2ImageProcessor
from ...progress import Progress
from .head_training import seeded


NUM_PICTURES = 6


def decode_map(value: Any, kinds: str, wanted: str) -> np.ndarray:
    """Decode a map with a number for each pixel.

    Args:
        value: as in `decode_image`: an image with one channel (8, 16 or 32 bits, or floats) or with a palette, a
            `.npy` file, or an array (H, W).
        kinds: kinds of NumPy types that are allowed.
        wanted: what messages call a number.

    Raises:
        UndecodableImage: the file is broken, or contains something else.
    """
    with undecodable_on_error():
        if isinstance(value, Image.Image):
            value = turn_upright(load_pixels(value))
        elif not isinstance(value, (np.ndarray, list)):
            content = read_content(value)
            is_array = content.startswith(NPY_BEGINNING)
            value = read_npy(content) if is_array else turn_upright(open_image(content))
    found = np.asarray(value)
    if found.ndim != 2 or found.dtype.kind not in kinds:
        raise UndecodableImage(
            f"it holds {found.dtype} of shape {found.shape}, not one {wanted} for each pixel, (height, width)"
        )
    return found


class UnusableRow(UndecodableImage):
    """A row whose image or map cannot be decoded."""


class PixelPairs(Dataset):
    """
    Row `i` is an image (C, H, W), uint8 or on its scale, and its map (H, W), as tv_tensors, so that transforms change
    both in the same way.

    Args:
        dataset: a map-style `datasets.Dataset` or a sequence of dict rows. A format or transform set on a
            `datasets.Dataset` is not applied.
        image_column: name of the column of images.
        num_channels: channels of the images; they are decoded for a model with this number.
        map_column: name of the column of maps.
        map_field: the user's name of that argument, for messages.
        decode_map: turns the value of a row into an array (H, W); raises `UndecodableImage` with the reason if it
            cannot.
        source: what messages call the dataset, such as "the training data".

    Raises:
        ValueError: at construction, as `require_column`, or if both columns are the same; for a row, if image or map
            cannot be decoded (`UnusableRow`), or their sizes differ.
    """

    def __init__(
        self,
        dataset: DatasetOrRows,
        *,
        image_column: str,
        num_channels: int,
        map_column: str,
        map_field: str,
        decode_map: Callable[[Any], np.ndarray],
        source: str,
    ):
        if map_column == image_column:
            raise ValueError(f"`{map_field}` is {map_column!r}, which is also the column of images; name another.")
        self.dataset = undecoded_columns(dataset, {"image_column": image_column, map_field: map_column})
        self.image_column, self.map_column, self.map_field = image_column, map_column, map_field
        self.decode_image, self.decode_map = image_decoder(num_channels), decode_map
        self.source = source

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        values = self.dataset[row]
        image = self._decode(self.decode_image, values, row, self.image_column, "image_column")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: PIL's own memory is read-only
        labels = self.labels(row, values)
        if pixels.shape[-2:] != labels.shape:
            raise ValueError(
                f"`{self.map_field}` {self.map_column!r} of {describe_row(values[self.map_column], row)} of"
                f" {self.source} is {labels.shape[0]} x {labels.shape[1]}, but its image is {pixels.shape[1]} x"
                f" {pixels.shape[2]}; both must have the same size."
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
                f"`{field}` {column!r} of {describe_row(values[column], row)} of {self.source} cannot be used"
                f" ({reason}); repair it or remove the row from the dataset."
            ) from None


class TrainingCrops(Dataset):
    """Pairs under a random transform. The key of each sample is its seed, so the number of workers does not matter.

    A row that cannot be decoded is replaced by the next one, because a training is long. After 20 such rows it stops.
    """

    def __init__(self, pairs: PixelPairs, transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.pairs, self.transform = pairs, transform

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor]:
        rows = ((key.row + attempt) % len(self.pairs) for attempt in count())
        _, pair, _ = first_decodable(((row, row) for row in rows), self.pairs.__getitem__)
        with seeded(key.seed):
            image, labels = self.transform(*pair)
        return image.as_subclass(Tensor), labels.as_subclass(Tensor)


def training_batches(
    extractor: FeatureExtractor,
    pairs: PixelPairs,
    transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    train_batch_size: int,
    seed: int,
) -> DataLoader:
    """Endless batches of this process's share of `train_batch_size` images, in an order that the seed determines."""
    sampler = PreTrainingBatchSampler(
        len(pairs), train_batch_size // extractor.world_size, seed=seed, rank=extractor.rank,
        world_size=extractor.world_size,
    )  # fmt: skip
    return DataLoader(
        TrainingCrops(pairs, transform),
        batch_sampler=sampler,
        num_workers=extractor.num_workers,
        # A separate generator: the loader draws a seed, and evaluation must not change the random numbers of a
        # training.
        generator=torch.Generator(),
    )


def check_train_batch_size(extractor: FeatureExtractor, train_batch_size: int, num_images: int) -> None:
    """`ValueError` if a training step needs more images than there are, or cannot be shared equally by processes."""
    if not 1 <= train_batch_size <= num_images:
        raise ValueError(
            f"`train_batch_size` is {train_batch_size}, but must be from 1 to the {num_images} images of the training"
            " data."
        )
    if train_batch_size % extractor.world_size:
        raise ValueError(
            f"`train_batch_size` is {train_batch_size}, which does not divide among {extractor.world_size} processes."
        )


def pairs_to_measure(
    extractor: FeatureExtractor, pairs: PixelPairs, description: str
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """This process's images and maps one by one, each with whether to draw it. Those to draw are evenly spaced."""
    rows = range(extractor.rank, len(pairs), extractor.world_size)
    drawn = rows[:: ceil(len(rows) / NUM_PICTURES)] if len(rows) else ()
    loader = DataLoader(
        Subset(pairs, rows), batch_size=None, num_workers=extractor.num_workers, generator=torch.Generator()
    )
    bar = Progress(loader, desc=description, unit="image", disable=not extractor.progress)
    for row, (image, labels) in zip(rows, bar, strict=True):
        yield image.as_subclass(Tensor), labels.as_subclass(Tensor), row in drawn


class PixelNormalization:
    """Converts pixels on the scale 0 to 255 to inputs of the model, with the values of its image processor.

    Raises:
        ValueError: the image processor's `image_mean` or `image_std` does not have the number of channels of the
            model.
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
                    f" {num_channels} channels; give one value for each."
                )

    def __call__(self, image: Tensor) -> Tensor:
        """(..., C, H, W) to float32."""
        return F.normalize(image.as_subclass(Tensor).float() * self.scale, self.mean, self.std)


def image_processor_for(image_processor: Any, **sizes: Any) -> DINOv2ImageProcessor:
    """An image processor that treats the values of pixels like another one, and never crops.

    Args:
        sizes: its fields for resizing.
    """
    return DINOv2ImageProcessor(**value_fields(image_processor), do_center_crop=False, **sizes)


def value_fields(image_processor: Any) -> dict[str, Any]:
    """The fields of an image processor that affect values of pixels, and not sizes."""
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb")
    return {name: getattr(image_processor, name) for name in names if hasattr(image_processor, name)}
