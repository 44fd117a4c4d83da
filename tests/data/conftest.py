import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.data import MultiCropTransform


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise_image(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised_crops(
    transform: MultiCropTransform, image: Image.Image | np.ndarray, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The global and the local crops of one image, after what is done to its batch on the device."""
    torch.manual_seed(seed)
    names = ("global_crops", "local_crops", "distortions")
    batch = {name: value.unsqueeze(1) for name, value in zip(names, transform(image), strict=False)}
    batch = transform.on_device(batch)
    assert set(batch) == {"global_crops", "local_crops"}
    return batch["global_crops"].squeeze(1), batch["local_crops"].squeeze(1)


@pytest.fixture(scope="session")
def encoded_images() -> list[bytes]:
    """24 different pictures as PNG files, of which rows 5, 6 and 17 are broken."""
    images = [encode(noise_image(seed)) for seed in range(24)]
    images[5] = b""
    images[6] = images[6][:300]
    images[17] = b"not an image"
    return images


def make_dataset(images: list[bytes]) -> datasets.Dataset:
    rows = [{"bytes": image, "path": f"{number}.png"} for number, image in enumerate(images)]
    return datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))


@pytest.fixture(scope="module")
def dataset(encoded_images) -> datasets.Dataset:
    return make_dataset(encoded_images)


@pytest.fixture(scope="module")
def stream(dataset) -> datasets.IterableDataset:
    return dataset.to_iterable_dataset(num_shards=4)
