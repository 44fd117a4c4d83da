"""The inputs of a model, and the same crops as pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ..feature_kinds import patch_size_of
from ..features import process_images
from .channels_as_rgb import rgb_picture


def picture_size(model: nn.Module) -> int | None:
    """An input size for detailed pictures of patches: at least 16 patches a side.

    None for a model without a square `config.image_size` of whole square patches.
    """
    size, (height, width) = getattr(model.config, "image_size", None), patch_size_of(model)
    if not isinstance(size, int) or height != width or size % height:
        return None
    return max(size, 16 * height)


def prepare_pictures(
    model: nn.Module,
    images: Sequence[Image.Image] | Sequence[np.ndarray],
    image_processor: Any,
    image_size: int | None = None,
) -> tuple[Tensor, list[Image.Image]]:
    """Pixel values for the model, and the same crops as pictures.

    Args:
        model: needs `config.patch_size` if `image_size` is given.
        images: PIL images, or arrays (height, width, channels) of `decode_channels`, whose first three channels are
            shown, each stretched to the range of its values.
        image_processor: any transformers image processor.
        image_size: resize the short side to this many pixels and crop a square of it, a multiple of the patch size; a
            larger one gives a finer patch grid. None: as the image processor is configured.

    Returns:
        (n, channels, height, width), and n pictures of mode RGB.

    Raises:
        ValueError: there is no image, or `image_size` is not a multiple of the patch size.
    """
    if len(images) == 0:
        raise ValueError("images has 0 pictures, but at least 1 is needed.")
    overrides = {}
    if image_size is not None:
        patch_size = patch_size_of(model)
        if image_size < 1 or any(image_size % side for side in patch_size):
            sides = " x ".join(map(str, patch_size))
            raise ValueError(f"`image_size` is {image_size}, but must be a multiple of the patch size, {sides}.")
        overrides = {
            "do_resize": True,
            "size": {"shortest_edge": image_size},
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
        }
    inputs = [image.convert("RGB") if isinstance(image, Image.Image) else image for image in images]
    pixel_values = process_images(image_processor, inputs, **overrides)
    # The same crop without normalisation is the input of the model as a picture.
    seen = process_images(image_processor, inputs, **{**overrides, "do_rescale": True, "do_normalize": False})
    pictures, low, high = seen.permute(0, 2, 3, 1).numpy(), 0.0, 1.0
    if isinstance(inputs[0], np.ndarray):
        low, high = pictures.min(axis=(0, 1, 2)), pictures.max(axis=(0, 1, 2))
    return pixel_values, [rgb_picture(picture, low, high) for picture in pictures]
