"""Crops beside those of the original's pipeline, torchvision's first transforms on PIL images, by their statistics."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.data.multi_crop import IMAGENET_MEAN, IMAGENET_STD, DeviceMultiCropTransform, MultiCropTransform
from tests.data.conftest import normalised_crops
from tests.examples.conftest import load_example


NUM_DRAWS = 500
SIZES = (32, 16, 1)
CROPS = ("first global", "second global", "local")
STATISTICS = ("red", "green", "blue", "contrast", "colour", "is grey", "sharpness", "to the right", "downwards")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Brighter and redder to the right, darker downwards, with detail of several sizes."""
    rng = np.random.default_rng(0)
    detail = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((160, 120), Image.BICUBIC))
        for n in (6, 24, 96)
    ]
    right, down = np.linspace(0, 60, 160)[None, :, None] * [1.0, 0.6, 0.3], np.linspace(60, 0, 120)[:, None, None]
    return Image.fromarray((0.5 * np.mean(detail, axis=0) + right + down).clip(0, 255).astype(np.uint8))


def statistics(crops: list[torch.Tensor]) -> torch.Tensor:
    """Of each crop, in [0, 1]: (crops, statistics)."""
    found = []
    for crop in crops:
        crop = crop * torch.tensor(IMAGENET_STD).view(3, 1, 1) + torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        grey, half = crop.mean(0), crop.shape[1] // 2
        colour = (crop - grey).abs().mean()
        found.append([
            *crop.mean((1, 2)), grey.std(), colour, colour < 1e-3, (grey[:, 1:] - grey[:, :-1]).abs().mean(),
            grey[:, half:].mean() - grey[:, :half].mean(), grey[half:].mean() - grey[:half].mean(),
        ])  # fmt: skip
    return torch.tensor(found)


@pytest.fixture(scope="module")
def of_the_original(picture) -> torch.Tensor:
    transform = load_example("benchmarks/data_path").OriginalTransform(*SIZES)
    torch.manual_seed(0)
    return torch.stack([statistics(transform(picture)) for _ in range(NUM_DRAWS)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MultiCropTransform, DeviceMultiCropTransform], ids=["multi_crop", "device"])
def test_statistics_of_crops(picture, of_the_original, kind):
    """Means within four standard errors, deviations within a fifth, and the quartiles as often on either side."""
    global_size, local_size, num_local = SIZES
    transform = kind(global_crop_size=global_size, local_crop_size=local_size, num_local_crops=num_local)
    ours = torch.stack(
        [
            statistics([crop for crops in normalised_crops(transform, picture, seed) for crop in crops])
            for seed in range(NUM_DRAWS)
        ]
    )
    standard_errors = of_the_original.std(0) * (2 / NUM_DRAWS) ** 0.5
    deviations = (ours.mean(0) - of_the_original.mean(0)) / standard_errors.clamp(min=1e-9)
    named = {
        f"{crop}, {statistic}": (float(deviations[i, j]), float(ours[:, i, j].std() / of_the_original[:, i, j].std()))
        for i, crop in enumerate(CROPS)
        for j, statistic in enumerate(STATISTICS)
    }
    assert not {name: values for name, values in named.items() if abs(values[0]) > 4 or not 0.8 < values[1] < 1.25}
    for quantile in (0.25, 0.5, 0.75):
        below = (ours < of_the_original.quantile(quantile, dim=0)).float().mean(0)
        continuous = [place for place, name in enumerate(STATISTICS) if name != "is grey"]
        assert (below[:, continuous] - quantile).abs().max() < 4 * (2 * 0.25 / NUM_DRAWS) ** 0.5
