"""Image processor of DINOv2: resize the short side, centre crop, rescale, normalise."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .decoded_inputs import DecodedInputs
from .dense_post_processing import DensePostProcessing


class DINOv2ImageProcessor(DensePostProcessing, DecodedInputs, TorchvisionBackend):
    """
    The original's evaluation transform: short side to 256 pixels (bicubic), centre crop of 224, ImageNet mean and
    deviation. Every step and size can be overridden at construction or in the call, as with any image processor.
    Files and images are decoded as in training (`DecodedInputs`).
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
