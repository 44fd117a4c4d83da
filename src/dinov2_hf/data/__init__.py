"""Makes pretraining batches from image files."""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names


if TYPE_CHECKING:
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

__getattr__, __dir__, __all__ = lazy_names(__name__)
