"""Multi-crop augmentation: two global crops and several local crops of one image (DINOv2, appendix B; after DINO).

Every crop goes through random resized crop (bicubic, antialiased), flip, colour jitter, greyscale, blur, solarize (the
second global crop only) and normalisation, in this order. Geometry and colour run on PIL images, where torchvision is
faster than on tensors for every size used here; blur, solarize and normalisation run once on the stacked crops of one
size.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import conv2d, pad
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..named_objects import Registry


# An augmentation is a class or function that takes options of the recipe, those below or some of them, and gives a
# transform from one picture to its global and local crops.
AUGMENTATIONS = Registry("augmentation")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_ASPECT_RATIO = (3 / 4, 4 / 3)
BRIGHTNESS_FACTOR = (0.6, 1.4)
CONTRAST_FACTOR = (0.6, 1.4)
SATURATION_FACTOR = (0.8, 1.2)
HUE_SHIFT = (-0.1, 0.1)
BLUR_SIGMA = (0.1, 2.0)
BLUR_RADIUS = 4
SOLARIZE_THRESHOLD = 128


@AUGMENTATIONS.register("multi_crop")
class MultiCropTransform:
    """Turns one picture into G=2 global crops and L local crops.

    All randomness derives from one draw of torch's global CPU generator, so `torch.manual_seed` fixes the result.

    The default blur probabilities are those that the original DINOv2 training had in effect. Its code names 1.0 and
    0.1 for the two global crops and 0.5 for local crops, but applies one minus the named value. Pass
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
        num_channels: 3 is RGB. For another number images are arrays, and what only colour has (jitter, greyscale,
            solarize) is left out whatever its probability.

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
        self.horizontal_flip_probability = horizontal_flip_probability
        self.color_jitter_probability = color_jitter_probability
        self.grayscale_probability = grayscale_probability
        self.global_blur_probabilities = tuple(global_blur_probabilities)
        self.local_blur_probabilities = (local_blur_probability,) * num_local_crops
        self.solarize_probability = solarize_probability
        self.mean = 255 * torch.tensor(image_mean).view(-1, 1, 1)
        self.std = 255 * torch.tensor(image_std).view(-1, 1, 1)

    def __call__(self, image: Image.Image | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the crops of one image.

        Args:
            image: a PIL image of mode RGB, or float32 of shape (height, width, C), on the scale of 8 bits.

        Returns:
            The global crops, float32 of shape (2, C, S, S), and the local crops, float32 of shape (L, C, s, s), both
            normalised.
        """
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image).permute(2, 0, 1)
        # Python's generator draws a scalar about twenty times faster than torch's.
        rng = random.Random(int(torch.randint(2**63 - 1, ())))
        global_crops = self._crops(
            image, self.global_crop_size, self.global_crop_scale, self.global_blur_probabilities, rng
        )
        if rng.random() < self.solarize_probability:
            global_crops[1] = F.solarize(global_crops[1], SOLARIZE_THRESHOLD)
        local_crops = self._crops(
            image, self.local_crop_size, self.local_crop_scale, self.local_blur_probabilities, rng
        )
        return self._normalize(global_crops), self._normalize(local_crops)

    def _crops(
        self,
        image: Image.Image | torch.Tensor,
        size: int,
        scale: tuple[float, float],
        blur_probabilities: tuple[float, ...],
        rng: random.Random,
    ) -> torch.Tensor:
        """As many crops as there are blur probabilities, of shape (crops, C, size, size): uint8, of an array float."""
        drawn, sigmas = [], {}
        for i, blur_probability in enumerate(blur_probabilities):
            drawn.append(self._crop(image, size, scale, rng))
            if rng.random() < blur_probability:
                sigmas[i] = rng.uniform(*BLUR_SIGMA)
        crops = self._stack(drawn, size)
        if sigmas:
            blurred = list(sigmas)
            crops[blurred] = gaussian_blur(crops[blurred], torch.tensor(list(sigmas.values())))
        return crops

    def _crop(
        self, image: Image.Image | torch.Tensor, size: int, scale: tuple[float, float], rng: random.Random
    ) -> Image.Image | torch.Tensor:
        box = draw_crop_box(*F.get_size(image), scale, rng)
        crop = F.resized_crop(image, *box, [size, size], interpolation=InterpolationMode.BICUBIC)
        if rng.random() < self.horizontal_flip_probability:
            crop = F.horizontal_flip(crop)
        if rng.random() < self.color_jitter_probability:
            adjustments = [
                (F.adjust_brightness, rng.uniform(*BRIGHTNESS_FACTOR)),
                (F.adjust_contrast, rng.uniform(*CONTRAST_FACTOR)),
                (F.adjust_saturation, rng.uniform(*SATURATION_FACTOR)),
                (F.adjust_hue, rng.uniform(*HUE_SHIFT)),
            ]
            rng.shuffle(adjustments)
            for adjust, amount in adjustments:
                crop = adjust(crop, amount)
        if rng.random() < self.grayscale_probability:
            crop = F.rgb_to_grayscale(crop, num_output_channels=3)
        return crop

    def _stack(self, crops: list[Image.Image] | list[torch.Tensor], size: int) -> torch.Tensor:
        if crops and isinstance(crops[0], torch.Tensor):
            return torch.stack(crops)
        stacked = np.empty((len(crops), size, size, len(self.mean)), dtype=np.uint8)
        for i, crop in enumerate(crops):
            stacked[i] = np.asarray(crop)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2)

    def _normalize(self, crops: torch.Tensor) -> torch.Tensor:
        return crops.to(torch.float32, memory_format=torch.contiguous_format).sub_(self.mean).div_(self.std)


def draw_crop_box(
    height: int, width: int, scale: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
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


def gaussian_blur(crops: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Blur each image with its own sigma: torchvision's 9x9 `gaussian_blur`, in one grouped convolution.

    Args:
        crops: uint8 or float of shape (n, C, h, w).
        sigmas: float of shape (n,), in pixels.

    Returns:
        The same shape and type; edges are reflected.
    """
    n, channels, height, width = crops.shape
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    kernels = (kernels[:, :, None] * kernels[:, None, :]).repeat_interleave(channels, dim=0).unsqueeze(1)
    planes = pad(crops.reshape(1, -1, height, width).float(), [BLUR_RADIUS] * 4, mode="reflect")
    blurred = conv2d(planes, kernels, groups=n * channels)
    return (blurred if crops.is_floating_point() else blurred.round_()).to(crops.dtype).view(crops.shape)


def _check_crop(name: str, size: int, scale: tuple[float, float], blur_probability: float) -> None:
    if size < 1:
        raise ValueError(f"{name}_size is {size}, but it must be at least 1 pixel.")
    if blur_probability > 0 and size <= BLUR_RADIUS:
        raise ValueError(
            f"{name}_size is {size}, but a crop that may be blurred needs at least {BLUR_RADIUS + 1} pixels."
        )
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name}_scale is {scale}, but it must be two fractions in (0, 1], the smaller first.")
