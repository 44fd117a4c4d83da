"""The common part of both image processors: the steps and sizes of the original's evaluation."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .decoded_inputs import DecodedInputs
from .dense_post_processing import DensePostProcessing


class EvaluationTransform(DensePostProcessing, DecodedInputs):
    """
    The original's evaluation transform: short side to 256 pixels (bicubic), centre crop of 224, ImageNet mean and
    deviation. Every step and size can be overridden at construction or in the call, as with any image processor. Files
    and images are decoded as in training (`DecodedInputs`). As a base class, it comes before the backend of
    transformers.
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
