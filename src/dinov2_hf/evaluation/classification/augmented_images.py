"""Augmented images for training a head on a frozen backbone: random resized crop and flip."""

import itertools
import random
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ...data.decoding.channels import image_decoder
from ...data.loader_workers import check_shared_memory
from ...data.multi_crop import draw_crop_box
from ...data.replacements import first_decodable
from ...data.sample_order import PreTrainingBatchSampler, SampleKey
from ...features import DatasetOrRows, DecodedImages, FeatureExtractor, process_images


CROP_SCALE = (0.08, 1.0)


class TrainingImages(Dataset):
    """Crops of a data set with random access, each drawn with the seed of its `SampleKey`.

    Args:
        images: images of the data set.
        crop_size: height and width of a crop, in pixels.
    """

    def __init__(self, images: DecodedImages, crop_size: tuple[int, int]):
        self.images, self.crop_size = images, crop_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey) -> tuple[int, Image.Image | np.ndarray]:
        """The row that was read, and its crop: an array (height, width, channels) if the image is an array.

        A row whose image cannot be decoded is replaced by another, drawn from the seed.

        Raises:
            ValueError: 20 rows in a row cannot be decoded.
        """
        rng = random.Random(key.seed)
        rows = itertools.chain([key.row], iter(lambda: rng.randrange(len(self)), None))
        row, image, _ = first_decodable(((row, row) for row in rows), self.images.image)
        return row, random_crop(image, self.crop_size, rng)


def random_crop(
    image: Image.Image | np.ndarray, size: tuple[int, int], rng: random.Random
) -> Image.Image | np.ndarray:
    """A random part of 8 % to all of the area, resized to `size` (bicubic), flipped with probability one half."""
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        return random_crop_of(tensor, size, rng).permute(1, 2, 0).numpy()
    return random_crop_of(image, size, rng)


Picture = TypeVar("Picture", Image.Image, Tensor)


def random_crop_of(image: Picture, size: tuple[int, int], rng: random.Random) -> Picture:
    height, width = F.get_size(image)
    box = draw_crop_box(height, width, CROP_SCALE, rng)
    crop = F.resized_crop(image, *box, list(size), interpolation=InterpolationMode.BICUBIC)
    return F.horizontal_flip(crop) if rng.random() < 0.5 else crop


def training_loader(extractor: FeatureExtractor, dataset: DatasetOrRows, order: PreTrainingBatchSampler) -> DataLoader:
    """Endless batches of row numbers (a list) and pixel values (B, C, height, width)."""
    height, width = crop_size_of(extractor.image_processor)
    images = DecodedImages(dataset, extractor.image_column, image_decoder(extractor.num_channels))
    batch_bytes = order.batch_size * extractor.num_channels * height * width * 4  # float32
    check_shared_memory(extractor.num_workers, batch_bytes)
    return DataLoader(
        TrainingImages(images, (height, width)),
        batch_sampler=order,
        num_workers=extractor.num_workers,
        collate_fn=partial(_process, extractor.image_processor),
        pin_memory=extractor.device_type == "cuda",
        generator=torch.Generator(),
    )


def crop_size_of(image_processor: Any) -> tuple[int, int]:
    """Height and width of the output images of a processor.

    Raises:
        ValueError: its output images have different sizes.
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
    # The crops already have their size.
    return list(rows), process_images(image_processor, crops, do_resize=False, do_center_crop=False)
