"""The image processor of DINOv2 on PIL and NumPy, for machines without torchvision."""

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .decoded_inputs import DecodedInputs
from .dense_post_processing import DensePostProcessing


class DINOv2ImageProcessorPil(DensePostProcessing, DecodedInputs, PilBackend):
    """
    As `DINOv2ImageProcessor`, and from the same files, but PIL resizes, as in the original. The results of the two
    resizings are a grey level apart in photographs, and up to 9 of 255 in pure noise.
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
