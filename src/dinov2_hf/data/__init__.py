"""From image files to pretraining batches."""

from .collator import BatchReport, PreTrainingCollator, PreTrainingSample, SkippedImage
from .decoding.channels import decode_channels, image_decoder
from .decoding.rgb import decode_image
from .decoding.size_limits import UndecodableImage, max_image_pixels, own_max_image_pixels, set_max_image_pixels
from .masking import BlockMaskGenerator, draw_masks, reference_mask_generator, reference_max_num_patches
from .multi_crop import MultiCropTransform
from .pretraining_images import PreTrainingImages, PreTrainingStream, build_loader
from .reading.image_dataset import describe_row, evaluation_split, find_image_column, first_images, load_image_dataset
from .sample_order import PreTrainingBatchSampler, SampleKey
from .skipped_images import SkippedImageLog


__all__ = [
    "BatchReport", "BlockMaskGenerator", "MultiCropTransform", "PreTrainingBatchSampler", "PreTrainingCollator",
    "PreTrainingImages", "PreTrainingSample", "PreTrainingStream", "SampleKey", "SkippedImage", "SkippedImageLog",
    "UndecodableImage", "build_loader", "decode_channels", "decode_image", "describe_row", "draw_masks",
    "evaluation_split", "find_image_column", "first_images", "image_decoder", "load_image_dataset", "max_image_pixels",
    "own_max_image_pixels", "reference_mask_generator", "reference_max_num_patches", "set_max_image_pixels",
]  # fmt: skip
