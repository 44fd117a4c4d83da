"""Multi-crop augmentation: two global crops and several local crops of one image (DINOv2, appendix B; after DINO).

Every crop goes through a random resized crop (bicubic, antialiased) and the changes of `distortions`. Crops stay in 8
bits until they are on the device of the training, where `on_device` normalises them. With `device`, the device also
makes the changes.
"""

import math
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from ..named_objects import Registry
from .batched_distortions import distort_batch
from .distortions import BLUR_RADIUS, Distortion, draw_distortion


# An augmentation is a class or function that takes all or some of the options below from the recipe. It returns a
# transform from one picture to its global and local crops. The method `on_device` of the transform, if there is one,
# changes each batch on the device of the training. Its `reduction` says how much smaller a JPEG file may be decoded.
AUGMENTATIONS = Registry("augmentation")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_ASPECT_RATIO = (3 / 4, 4 / 3)
Box = tuple[int, int, int, int]
Drawn = list[tuple[Box, Distortion]]


@AUGMENTATIONS.register("multi_crop")
class MultiCropTransform:
    """Turns one picture into G=2 global crops and L local crops.

    All randomness derives from one draw of torch's global CPU generator, so `torch.manual_seed` fixes the result.

    The default blur probabilities are those that the original DINOv2 training really used. Its code gives 1.0 and 0.1
    for the two global crops and 0.5 for local crops, but applies one minus the given value. Pass
    `global_blur_probabilities=(1.0, 0.1)` to train as intended.

    Args:
        global_crop_size: side S of a global crop, in pixels.
        local_crop_size: side s of a local crop, in pixels.
        num_local_crops: L; 0 turns local crops off.
        global_crop_scale, local_crop_scale: range of a crop's area, as a fraction of the image's area.
        horizontal_flip_probability, color_jitter_probability, grayscale_probability: for every crop.
        global_blur_probabilities: for the first and the second global crop.
        local_blur_probability: for a local crop.
        solarize_probability: for the second global crop.
        image_mean, image_std: normalisation of the channels scaled to [0, 1].
        num_channels: 3 is RGB. For another number images are arrays, and distortions of colour (jitter, greyscale,
            solarize) are left out whatever their probability.

    Raises:
        ValueError: if a size is not positive (or too small to blur), if a scale is not a range in (0, 1], or if a
            probability lies outside [0, 1].
    """

    def __init__(
        self,
        *,
        global_crop_size: int = 224,
        local_crop_size: int = 98,
        num_local_crops: int = 8,
        global_crop_scale: tuple[float, float] = (0.32, 1.0),
        local_crop_scale: tuple[float, float] = (0.05, 0.32),
        horizontal_flip_probability: float = 0.5,
        color_jitter_probability: float = 0.8,
        grayscale_probability: float = 0.2,
        global_blur_probabilities: tuple[float, float] = (0.0, 0.9),
        local_blur_probability: float = 0.5,
        solarize_probability: float = 0.2,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        num_channels: int = 3,
    ):
        _check_crop("global_crop", global_crop_size, global_crop_scale, max(global_blur_probabilities))
        _check_crop("local_crop", local_crop_size, local_crop_scale, local_blur_probability)
        if num_local_crops < 0:
            raise ValueError(f"num_local_crops is {num_local_crops}, but it must be 0 or more.")
        for name, probability in {
            "horizontal_flip_probability": horizontal_flip_probability,
            "color_jitter_probability": color_jitter_probability,
            "grayscale_probability": grayscale_probability,
            "global_blur_probabilities[0]": global_blur_probabilities[0],
            "global_blur_probabilities[1]": global_blur_probabilities[1],
            "local_blur_probability": local_blur_probability,
            "solarize_probability": solarize_probability,
        }.items():
            if not 0 <= probability <= 1:
                raise ValueError(f"{name} is {probability}, but a probability must lie in [0, 1].")
        if len(image_mean) != num_channels or len(image_std) != num_channels or min(image_std) <= 0:
            raise ValueError(
                f"image_mean is {image_mean} and image_std is {image_std}, but num_channels is {num_channels}: each "
                "must be so many numbers, and those of image_std positive."
            )
        if num_channels != 3:
            color_jitter_probability = grayscale_probability = solarize_probability = 0.0
        self.global_crop_size = global_crop_size
        self.local_crop_size = local_crop_size
        self.global_crop_scale = global_crop_scale
        self.local_crop_scale = local_crop_scale
        self.probabilities = {
            "flip_probability": horizontal_flip_probability,
            "jitter_probability": color_jitter_probability,
            "grey_probability": grayscale_probability,
        }
        # Values that differ between crops.
        self.global_probabilities = [
            {"blur_probability": blur, "solarize_probability": solarize}
            for blur, solarize in zip(global_blur_probabilities, (0.0, solarize_probability), strict=True)
        ]
        self.local_probabilities = [{"blur_probability": local_blur_probability, "solarize_probability": 0.0}] * (
            num_local_crops
        )
        # Normalised is crop * scale + shift, which takes fewer passes than (crop / 255 - mean) / std.
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image_mean, image_std))
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, image: Image.Image | np.ndarray) -> tuple[torch.Tensor, ...]:
        """Draw the crops of one image.

        Args:
            image: a PIL image of mode RGB, or float32 of shape (height, width, C), on the scale of 8 bits.

        Returns:
            The global crops, of shape (2, C, S, S), and the local crops, of shape (L, C, s, s), both from 0 to 255:
            uint8 for a PIL image, float32 for an array.
        """
        pixels = np.asarray(image)
        global_drawn, local_drawn = self._draw(*pixels.shape[:2])
        return (
            distorted_crops(pixels, self.global_crop_size, global_drawn),
            distorted_crops(pixels, self.local_crop_size, local_drawn),
        )

    def on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Normalise the crops of a batch.

        Args:
            batch: from `PreTrainingCollator`, on the device of the training.

        Returns:
            The same batch with `global_crops` and `local_crops` in float32.
        """
        return batch | {name: self._normalize(batch[name]) for name in ("global_crops", "local_crops")}

    def reduction(self, width: int, height: int) -> int:
        """The factor by which an image may be decoded smaller without enlarging a crop: 1, 2, 4 or 8."""
        area = width * height * CROP_ASPECT_RATIO[0]
        # The shortest side that a box can have. If no box fits, it is as wide or as high as the image.
        ratios = [
            min(math.sqrt(scale[0] * area), width, height) / size
            for size, scale in (
                (self.global_crop_size, self.global_crop_scale),
                (self.local_crop_size, self.local_crop_scale),
            )
        ]
        return next((factor for factor in (8, 4, 2) if factor <= min(ratios)), 1)

    def _draw(self, height: int, width: int) -> tuple[Drawn, Drawn]:
        """Boxes and distortions of the global and of the local crops."""
        # Python's generator draws a scalar about twenty times faster than torch's.
        rng = random.Random(int(torch.randint(2**63 - 1, ())))

        def drawn(scale: tuple[float, float], probabilities: Sequence[Mapping[str, float]]) -> Drawn:
            return [
                (draw_crop_box(height, width, scale, rng), draw_distortion(rng, **self.probabilities, **own))
                for own in probabilities
            ]

        global_crops = drawn(self.global_crop_scale, self.global_probabilities)
        return global_crops, drawn(self.local_crop_scale, self.local_probabilities)

    def _normalize(self, crops: torch.Tensor) -> torch.Tensor:
        scale, shift = (values.to(crops.device, non_blocking=True) for values in (self.scale, self.shift))
        return (crops.contiguous() * scale).add_(shift)


@AUGMENTATIONS.register("device")
class DeviceMultiCropTransform(MultiCropTransform):
    """A `MultiCropTransform` that only cuts out crops. Everything else is done to a whole batch, on its device."""

    def __call__(self, image: Image.Image | np.ndarray) -> tuple[torch.Tensor, ...]:
        """Draw the crops of one image, as `MultiCropTransform`.

        Returns:
            The global and local crops, and (2 + L, numbers), float32: the `Distortion` of each crop.
        """
        pixels = np.asarray(image)
        global_drawn, local_drawn = self._draw(*pixels.shape[:2])
        return (
            cut_out(pixels, self.global_crop_size, global_drawn),
            cut_out(pixels, self.local_crop_size, local_drawn),
            numbers_of(global_drawn + local_drawn),
        )

    def on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Distort and normalise the crops of a batch, as `MultiCropTransform`.

        Args:
            batch: `distortions` (2 + L, B, numbers) stay on the CPU.
        """
        batch = dict(batch)
        distortions = batch.pop("distortions").split([len(batch["global_crops"]), len(batch["local_crops"])])
        for name, numbers in zip(("global_crops", "local_crops"), distortions, strict=True):
            crops = batch[name]
            batch[name] = distort_batch(crops.flatten(0, 1), numbers.flatten(0, 1)).view(crops.shape)
        return super().on_device(batch)


def cut_out(pixels: np.ndarray, size: int, drawn: Drawn) -> torch.Tensor:
    """The boxes of an image (height, width, C), resized to (crops, C, size, size) of the image's type."""
    crops = np.empty((len(drawn), pixels.shape[2], size, size), pixels.dtype)
    for crop, (box, _) in zip(crops, drawn, strict=True):
        np.copyto(crop, resized_crop(pixels, box, size).transpose(2, 0, 1))
    return torch.from_numpy(crops)


def distorted_crops(pixels: np.ndarray, size: int, drawn: Drawn) -> torch.Tensor:
    """The crops of `cut_out`, each with its distortion."""
    if pixels.dtype != np.uint8:
        return distort_batch(cut_out(pixels, size, drawn), numbers_of(drawn))
    from .opencv_distortions import distort  # nothing else needs it

    crops = np.empty((len(drawn), pixels.shape[2], size, size), np.uint8)
    for crop, (box, distortion) in zip(crops, drawn, strict=True):
        distort(resized_crop(pixels, box, size), distortion, crop)
    return torch.from_numpy(crops)


def numbers_of(drawn: Drawn) -> torch.Tensor:
    """The distortions of crops, float32 of shape (crops, numbers)."""
    numbers = [distortion for _, distortion in drawn]
    return torch.tensor(numbers, dtype=torch.float32).view(len(numbers), len(Distortion._fields))


def resized_crop(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """A box of an image (height, width, C), resized as Pillow does it (bicubic, antialiased) to (size, size, C)."""
    top, left, height, width = box
    # torch resizes 8-bit images fastest, and leaves them so, if their channels come last in a batch of one.
    crop = torch.from_numpy(pixels[None, top : top + height, left : left + width].copy()).permute(0, 3, 1, 2)
    resized = interpolate(crop, size=(size, size), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1).numpy()[0]


def draw_crop_box(height: int, width: int, scale: tuple[float, float], rng: random.Random) -> Box:
    """Draw the box of a random resized crop, with the distribution of torchvision's `RandomResizedCrop`.

    Args:
        height, width: size of the image, in pixels.
        scale: range of the box's area, as a fraction of the image's area.
        rng: the source of every draw.

    Returns:
        top, left, height and width of the box, in pixels. If no box of ten drawn fits (very elongated images), the
        largest centred box whose aspect ratio is allowed.
    """
    low, high = CROP_ASPECT_RATIO
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < box_height <= height and 0 < box_width <= width:
            return rng.randint(0, height - box_height), rng.randint(0, width - box_width), box_height, box_width
    box_height = min(height, round(width / low))
    box_width = min(width, round(height * high))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _check_crop(name: str, size: int, scale: tuple[float, float], blur_probability: float) -> None:
    if size < 1:
        raise ValueError(f"{name}_size is {size}, but it must be at least 1 pixel.")
    if blur_probability > 0 and size <= BLUR_RADIUS:
        raise ValueError(
            f"{name}_size is {size}, but a crop that may be blurred needs at least {BLUR_RADIUS + 1} pixels."
        )
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name}_scale is {scale}, but it must be two fractions in (0, 1], the smaller first.")
