"""Augmented images for training a head on a frozen backbone: random resized crop and flip."""

import random
from functools import partial
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ...data.decoding.channels import image_decoder
from ...data.decoding.undecodable import UndecodableImage
from ...data.loader_workers import check_shared_memory
from ...data.multi_crop import draw_crop_box
from ...data.sample_order import PreTrainingBatchSampler, SampleKey
from ...features import DecodedImages, process_images


CROP_SCALE = (0.08, 1.0)
MAX_TRIES = 20


class TrainingImages(Dataset):
    """Crops of a data set with random access, each drawn with the seed of its `SampleKey`.

    Args:
        dataset: the images.
        image_column: the column that holds them.
        crop_size: height and width of a crop, in pixels.
        num_channels: channels to decode, see `image_decoder`.
    """

    def __init__(self, dataset: datasets.Dataset, image_column: str, crop_size: tuple[int, int], num_channels: int):
        self.images = DecodedImages(dataset, image_column, image_decoder(num_channels))
        self.crop_size = crop_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> tuple[int, Image.Image | np.ndarray]:
        """The row that was read, and its crop, an array (height, width, channels) where the image is one.

        A row whose image cannot be decoded is replaced by another, drawn from the seed.

        Raises:
            ValueError: 20 rows in a row cannot be decoded.
        """
        rng = random.Random(key.seed)
        row = key.row
        for _ in range(MAX_TRIES):
            _, image = self.images[row]
            if not isinstance(image, UndecodableImage):
                return row, random_crop(image, self.crop_size, rng)
            row = rng.randrange(len(self))
        raise ValueError(f"row {key.row} and {MAX_TRIES - 1} others cannot be decoded ({image}); repair the dataset.")


def random_crop(
    image: Image.Image | np.ndarray, size: tuple[int, int], rng: random.Random
) -> Image.Image | np.ndarray:
    """A random part of 8 % to all of the area, resized to `size` (bicubic), and flipped every other time."""
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        return random_crop_of(tensor, size, rng).permute(1, 2, 0).numpy()
    return random_crop_of(image, size, rng)


def random_crop_of(image: Image.Image | Tensor, size: tuple[int, int], rng: random.Random) -> Image.Image | Tensor:
    box = draw_crop_box(*F.get_size(image), CROP_SCALE, rng)
    crop = F.resized_crop(image, *box, list(size), interpolation=InterpolationMode.BICUBIC)
    return F.horizontal_flip(crop) if rng.random() < 0.5 else crop


def training_loader(
    dataset: datasets.Dataset,
    image_column: str,
    image_processor: Any,
    order: PreTrainingBatchSampler,
    *,
    num_channels: int,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader:
    """Endless batches of row numbers (a list) and pixel values (B, C, height, width)."""
    height, width = crop_size_of(image_processor)
    images = TrainingImages(dataset, image_column, (height, width), num_channels)
    check_shared_memory(num_workers, order.batch_size * num_channels * height * width * 4)  # float32
    return DataLoader(
        images,
        batch_sampler=order,
        num_workers=num_workers,
        collate_fn=partial(_process, image_processor),
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )


def crop_size_of(image_processor: Any) -> tuple[int, int]:
    """Height and width of the images that a processor makes.

    Raises:
        ValueError: it makes images of different sizes.
    """
    names = ("crop_size", "size") if getattr(image_processor, "do_center_crop", False) else ("size",)
    for name in names:
        size = getattr(image_processor, name, None)
        if size is not None and size["height"] is not None:
            return size["height"], size["width"]
    raise ValueError(
        f"image_processor ({type(image_processor).__name__}) makes images of different sizes, but a crop of one size "
        "is needed for training: set do_center_crop and crop_size."
    )


def _process(image_processor, samples: list[tuple[int, Image.Image | np.ndarray]]) -> tuple[list[int], Tensor]:
    rows, crops = zip(*samples, strict=True)
    # They have their size already.
    return list(rows), process_images(image_processor, crops, do_resize=False, do_center_crop=False)
