"""The distributions are measured; bounds are four standard deviations of a binomial.

What holds for every crop is measured of both augmentations, of which one leaves a part of its work to the device.
"""

import inspect
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from dinov2_hf.data import decode_image, opencv_distortions
from dinov2_hf.data.multi_crop import DeviceMultiCropTransform, MultiCropTransform, draw_crop_box
from tests.data.conftest import encode, noise_image, normalised_crops


PLAIN = {
    "global_crop_size": 16,
    "local_crop_size": 8,
    "num_local_crops": 1,
    "horizontal_flip_probability": 0.0,
    "color_jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "global_blur_probabilities": (0.0, 0.0),
    "local_blur_probability": 0.0,
    "solarize_probability": 0.0,
    "image_mean": (0.0, 0.0, 0.0),
    "image_std": (1.0, 1.0, 1.0),
}
NUM_DRAWS = 400
CROPS = ("first global", "second global", "local")


both = pytest.mark.parametrize("kind", [MultiCropTransform, DeviceMultiCropTransform], ids=["multi_crop", "device"])


def crops_of(image, seed, kind=MultiCropTransform, **settings):
    """The first global, the second global and the first local crop, in [0, 1]."""
    global_crops, local_crops = normalised_crops(kind(**{**PLAIN, **settings}), image, seed)
    return global_crops[0], global_crops[1], local_crops[0]


def changed_fractions(kind, image, **settings):
    """How often a setting changes a grey level of each crop, against the plain transform with the same geometry."""
    changed = np.array(
        [
            [
                bool((a - b).abs().max() > 0.5 / 255)
                for a, b in zip(crops_of(image, seed, kind), crops_of(image, seed, kind, **settings), strict=True)
            ]
            for seed in range(NUM_DRAWS)
        ]
    )
    return dict(zip(CROPS, changed.mean(axis=0), strict=True))


def about(probability):
    return pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / NUM_DRAWS))


def ramp_image() -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    ramp = np.zeros((100, 200, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 200).round()
    ramp[..., 1] = np.linspace(0, 255, 100).round()[:, None]
    return Image.fromarray(ramp)


def test_shapes_types_and_normalisation():
    transform = MultiCropTransform(global_crop_size=16, local_crop_size=8, num_local_crops=3)
    drawn = transform(Image.new("RGB", (50, 40), "white"))
    for crops, dtype in ((drawn, torch.uint8), (normalised_crops(transform, noise_image(0), 0), torch.float32)):
        assert [crop.shape for crop in crops] == [(2, 3, 16, 16), (3, 3, 8, 8)]
        assert all(crop.dtype == dtype and crop.is_contiguous() for crop in crops)
    white = crops_of(
        Image.new("RGB", (50, 40), "white"), 0, image_mean=(0.485, 0.456, 0.406), image_std=(0.2, 0.3, 0.4)
    )
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(white[0][:, 3, 3], expected)


@both
def test_no_local_crops(kind):
    _, local_crops = normalised_crops(kind(num_local_crops=0, local_crop_size=8), noise_image(0), 0)
    assert local_crops.shape == (0, 3, 8, 8)


@both
def test_the_seed_of_torch_decides(kind):
    transform = kind(global_crop_size=16, local_crop_size=8)
    draws = [
        torch.cat([crop.flatten() for crop in normalised_crops(transform, noise_image(0), seed)]) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@both
def test_default_blur_is_that_of_the_original_as_run(kind):
    names = ("global_blur_probabilities", "local_blur_probability")
    defaults = {name: inspect.signature(kind).parameters[name].default for name in names}
    fractions = changed_fractions(kind, noise_image(0, 64, 64), **defaults)
    # A sigma below 0.28 pixels, out of U(0.1, 2), moves no grey level of 255.
    visible = (2.0 - 0.28) / 1.9
    assert fractions["first global"] == 0
    assert fractions["second global"] == about(0.9 * visible)
    assert fractions["local"] == about(0.5 * visible)


@both
def test_only_the_second_global_crop_is_solarized(kind):
    fractions = changed_fractions(kind, noise_image(0), solarize_probability=0.2)
    assert fractions == {"first global": 0, "second global": about(0.2), "local": 0}


@both
def test_solarize_inverts_the_bright_half(kind):
    _, crop, _ = crops_of(Image.new("RGB", (20, 20), (10, 127, 200)), 0, kind, solarize_probability=1.0)
    assert (crop[:, 0, 0] * 255).round().tolist() == [10, 127, 55]


@both
@pytest.mark.parametrize("crop", range(3), ids=CROPS)
def test_half_of_the_crops_are_flipped(crop, kind):
    flipped = [
        bool(red[:, 0].mean() > red[:, -1].mean())
        for red in (
            crops_of(ramp_image(), seed, kind, horizontal_flip_probability=0.5)[crop][0] for seed in range(NUM_DRAWS)
        )
    ]
    assert np.mean(flipped) == about(0.5)


@both
def test_greyscale_rate(kind):
    image = noise_image(0)
    grey = [
        [bool((crop == crop[:1]).all()) for crop in crops_of(image, seed, kind, grayscale_probability=0.2)]
        for seed in range(NUM_DRAWS)
    ]
    assert np.mean(grey, axis=0).tolist() == [about(0.2)] * 3


@both
def test_colour_jitter_rate_and_range(kind):
    # On an even grey, brightness is the only part of the jitter that shows.
    image = Image.new("RGB", (20, 20), (128, 128, 128))
    greys = 255 * torch.tensor(
        [
            [crop.mean() for crop in crops_of(image, seed, kind, color_jitter_probability=0.8)]
            for seed in range(NUM_DRAWS)
        ]
    )
    # A factor that rounds back to 128 is not seen: one grey level of the 102 that the factors span.
    assert (greys.round() != 128).float().mean(dim=0).tolist() == [about(0.8 * 101 / 102)] * 3
    assert 0.6 * 128 - 1 <= greys.min() < 0.65 * 128
    assert 1.35 * 128 < greys.max() <= 1.4 * 128 + 1


def test_jitter_steps_come_in_any_order(monkeypatch):
    names = ("brightness", "contrast", "saturation", "hue")
    calls = []

    def noted(name, adjust):
        def adjust_and_note(image, amount):
            calls.append(name)
            return adjust(image, amount)

        return adjust_and_note

    for name in names:
        monkeypatch.setitem(opencv_distortions.ADJUSTMENTS, name, noted(name, opencv_distortions.ADJUSTMENTS[name]))
    for seed in range(100):
        crops_of(noise_image(0), seed, color_jitter_probability=1.0)
    orders = Counter(zip(*[iter(calls)] * 4, strict=True))
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len(orders) == 24
    assert max(orders.values()) < 4 * 300 / 24


@pytest.mark.parametrize(("crop", "scale"), [(0, (0.32, 1.0)), (1, (0.32, 1.0)), (2, (0.05, 0.32))])
def test_crops_cover_the_area_they_should(crop, scale):
    areas = []
    for seed in range(NUM_DRAWS):
        red, green, _ = crops_of(ramp_image(), seed)[crop]
        size = red.shape[0]
        # A crop of n pixels shows its ramp at the centres of the pixels, hence n / (n - 1).
        width, height = (
            float(end - start) * size / (size - 1)
            for start, end in ((red[0, 0], red[0, -1]), (green[0, 0], green[-1, 0]))
        )
        areas.append(width * height)
    assert scale[0] * 0.85 < min(areas) < scale[0] + 0.1 * (scale[1] - scale[0])
    assert max(areas) < scale[1] * 1.1


def test_crop_boxes_are_distributed_as_in_torchvision():
    rng = random.Random(0)
    image = torch.zeros(1, 50, 80)
    reference = v2.RandomResizedCrop(8, scale=(0.2, 1.0))
    boxes = torch.tensor([draw_crop_box(50, 80, (0.2, 1.0), rng) for _ in range(4000)], dtype=torch.float64)
    params = [reference.make_params([image]) for _ in range(4000)]
    expected = torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in params], dtype=torch.float64)
    standard_error = expected.std(dim=0) * math.sqrt(2 / 4000)
    assert ((boxes.mean(dim=0) - expected.mean(dim=0)).abs() < 4 * standard_error).all()
    torch.testing.assert_close(boxes.std(dim=0), expected.std(dim=0), rtol=0.06, atol=0.0)
    assert (boxes[:, 0] + boxes[:, 2]).max() <= 50
    assert (boxes[:, 1] + boxes[:, 3]).max() <= 80


@pytest.mark.parametrize(
    ("height", "width", "box"), [(1, 90, (0, 44, 1, 1)), (90, 3, (43, 0, 4, 3)), (1, 1, (0, 0, 1, 1))]
)
def test_elongated_images_are_cropped_in_the_middle(height, width, box):
    assert draw_crop_box(height, width, (0.9, 1.0), random.Random(0)) == box


@pytest.mark.parametrize(
    ("size", "factor"),
    [
        ((500, 333), 1),  # the smallest local crop may be 79 x 105 pixels, for 98 x 98
        ((1600, 1200), 2),
        ((1200, 1600), 2),
        ((4000, 3000), 4),
        ((12000, 9000), 8),
        ((4000, 500), 2),  # no box of a third of its area fits
        ((400, 40), 1),
    ],
)
def test_how_much_smaller_an_image_may_be_decoded(size, factor):
    assert MultiCropTransform().reduction(*size) == factor


def test_a_smaller_image_gives_the_same_crops():
    """Of a smooth picture, with and without; boxes differ by rounding to whole pixels."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((1600, 1200), Image.BICUBIC)
    content = encode(picture, "JPEG", quality=95)
    transform = MultiCropTransform()
    whole, smaller = decode_image(content), decode_image(content, reduction=transform.reduction)
    assert (whole.size, smaller.size) == ((1600, 1200), (800, 600))
    for seed in range(5):
        for one, other in zip(
            normalised_crops(transform, whole, seed), normalised_crops(transform, smaller, seed), strict=True
        ):
            levels = (one - other).abs() / transform.scale
            assert levels.mean() < 2


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("global_crop_size", {"global_crop_size": 0}),
        ("local_crop_size", {"local_crop_size": 4}),
        ("num_local_crops", {"num_local_crops": -1}),
        ("global_crop_scale", {"global_crop_scale": (0.5, 1.2)}),
        ("local_crop_scale", {"local_crop_scale": (0.3, 0.1)}),
        ("horizontal_flip_probability", {"horizontal_flip_probability": 1.5}),
        ("global_blur_probabilities", {"global_blur_probabilities": (0.0, -0.1)}),
        ("image_std", {"image_std": (1.0, 1.0, 0.0)}),
    ],
)
def test_impossible_settings_are_refused(name, settings):
    with pytest.raises(ValueError, match=name):
        MultiCropTransform(**settings)
