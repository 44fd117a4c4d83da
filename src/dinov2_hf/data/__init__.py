"""From image files to pretraining batches."""

from .collator import BatchReport, PreTrainingCollator, PreTrainingSample, SkippedImage
from .decoding.channels import decode_channels, image_decoder
from .decoding.rgb import decode_image
from .decoding.size_limits import max_image_pixels, own_max_image_pixels, set_max_image_pixels
from .decoding.undecodable import UndecodableImage
from .loader import build_batches, build_loader, build_transform
from .masking import MASKS, draw_masks
from .multi_crop import AUGMENTATIONS, MultiCropTransform
from .pretraining_images import PreTrainingImages, PreTrainingStream
from .reading.image_columns import describe_row, find_image_column, first_images
from .reading.image_dataset import evaluation_split, load_image_dataset
from .reading.mixed_images import MixedImages, load_mixed_images
from .sample_order import SAMPLE_ORDERS, PreTrainingBatchSampler, SampleKey
from .skipped_images import SkippedImageLog


__all__ = [
    "AUGMENTATIONS", "MASKS", "SAMPLE_ORDERS", "BatchReport", "MixedImages", "MultiCropTransform",
    "PreTrainingBatchSampler", "PreTrainingCollator", "PreTrainingImages", "PreTrainingSample", "PreTrainingStream",
    "SampleKey", "SkippedImage", "SkippedImageLog", "UndecodableImage", "build_batches", "build_loader",
    "build_transform", "decode_channels", "decode_image", "describe_row", "draw_masks", "evaluation_split",
    "find_image_column", "first_images", "image_decoder", "load_image_dataset", "load_mixed_images",
    "max_image_pixels", "own_max_image_pixels", "set_max_image_pixels",
]  # fmt: skip
