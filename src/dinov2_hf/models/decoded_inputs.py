"""Decodes the inputs of an image processor as in training, so that the kind of input does not change the result."""

import base64
import os
from typing import Any

import numpy as np
from huggingface_hub import get_session
from PIL import Image
from transformers.image_utils import infer_channel_dimension_format


def decode_input(value: str | os.PathLike | Image.Image, timeout: float | None = None) -> Image.Image:
    """An upright RGB picture from any input that transformers accepts.

    Args:
        value: a path, a URL, a base64 string (with or without "data:image/..."), or an image that Pillow has opened.
        timeout: for a URL, in seconds.

    Raises:
        UndecodableImage: it cannot be decoded, or exceeds the limits of `data.decoding.size_limits`.
    """
    # Imported here, because the data package takes a second to import, and models are also used without images.
    from ..data.decoding.rgb import decode_image

    return decode_image(encoded_input(value, timeout))


def encoded_input(value: Any, timeout: float | None = None) -> Any:
    """The bytes of a URL or a base64 string; any other value unchanged."""
    if not isinstance(value, str) or os.path.exists(value):
        return value
    if value.startswith(("http://", "https://")):
        return get_session().get(value, timeout=timeout, follow_redirects=True).raise_for_status().content
    text = value.partition(",")[2] if value.startswith("data:image/") else value
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return value  # a missing path, and it is reported as such


class DecodedInputs:
    """
    The part of both image processors that turns inputs into arrays. It comes before the backend of transformers.

    Paths, URLs, base64 strings and PIL images are decoded by `data.decode_image` (by `data.decode_channels`, if
    `image_mean` does not have 3 channels and `do_convert_rgb` is off). Arrays of 8 or 16 bits are converted in the
    same way, as grey, or as colours and transparency. Other arrays and tensors are treated as in transformers.
    """

    def fetch_images(self, images: Any) -> Any:
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        return self._decoded(images, self.do_convert_rgb) if isinstance(images, (str, os.PathLike)) else images

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: str | None = None, **kwargs: Any
    ) -> Any:
        if isinstance(image, Image.Image):
            image = self._decoded(image, do_convert_rgb)
            input_data_format = "channels_last" if isinstance(image, np.ndarray) else input_data_format
        elif isinstance(image, np.ndarray) and do_convert_rgb:
            image = _picture(image, input_data_format)
        elif isinstance(image, np.ndarray) and image.ndim == 3 and input_data_format is None:
            # transformers knows 1, 3 and, in its newest versions, 4 channels.
            input_data_format = infer_channel_dimension_format(image, (1, 3, len(self.image_mean)))
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )

    def _decoded(self, value: Any, do_convert_rgb: bool | None) -> Image.Image | np.ndarray:
        if do_convert_rgb or len(self.image_mean) == 3:
            return decode_input(value)
        from ..data.decoding.channels import decode_channels

        return decode_channels(encoded_input(value), len(self.image_mean))


def _picture(array: np.ndarray, input_data_format: str | None) -> Image.Image | np.ndarray:
    """An array with the values of an image file as a picture; any other array unchanged."""
    if array.dtype == np.uint16 and array.ndim == 3 and 1 not in (array.shape[0], array.shape[-1]):
        array = np.rint(array / 257).astype(np.uint8)  # Pillow has no colours of 16 bits
    pixels = array
    if array.ndim == 3 and (input_data_format or "channels_last") != "channels_last":
        pixels = np.moveaxis(array, 0, -1)
    elif array.ndim == 3 and input_data_format is None and array.shape[-1] > 4 >= array.shape[0]:
        pixels = np.moveaxis(array, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    is_picture = pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[-1] in (2, 4))
    if is_picture or (pixels.dtype == np.uint16 and pixels.ndim == 2):
        return decode_input(Image.fromarray(np.ascontiguousarray(pixels)))
    return array
