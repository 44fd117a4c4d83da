"""The pipelines of transformers for images. For our models, they decode as in training.

A stock pipeline converts its input to RGB before the image processor gets it: 16-bit values are cut off at 255, and
transparent pixels show the colour stored below them. The classes here decode first. transformers finds them by the
task. For other image processors they return the stock pipeline, of its own class.
"""

import os
from typing import Any

from PIL import Image
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.depth_estimation import DepthEstimationPipeline
from transformers.pipelines.image_classification import ImageClassificationPipeline
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline
from transformers.pipelines.image_segmentation import ImageSegmentationPipeline

from .decoded_inputs import DecodedInputs, decode_input


class DecodingPipeline:
    """The common part of the four pipelines."""

    def __new__(cls, *args: Any, image_processor: Any = None, **kwargs: Any):
        if image_processor is None or isinstance(image_processor, DecodedInputs):  # None: a copy is being made
            return super().__new__(cls)
        stock = cls.__mro__[cls.__mro__.index(DecodingPipeline) + 1]
        return stock(*args, image_processor=image_processor, **kwargs)  # of another class, so not initialised again

    def preprocess(self, image: Any, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        if isinstance(image, (str, os.PathLike, Image.Image)):
            image = decode_input(image, timeout)
        return super().preprocess(image, *args, **kwargs)


class DINOv2ImageFeatureExtractionPipeline(DecodingPipeline, ImageFeatureExtractionPipeline):
    pass


class DINOv2ImageClassificationPipeline(DecodingPipeline, ImageClassificationPipeline):
    pass


class DINOv2ImageSegmentationPipeline(DecodingPipeline, ImageSegmentationPipeline):
    pass


class DINOv2DepthEstimationPipeline(DecodingPipeline, DepthEstimationPipeline):
    pass


PIPELINES = {
    "image-feature-extraction": DINOv2ImageFeatureExtractionPipeline,
    "image-classification": DINOv2ImageClassificationPipeline,
    "image-segmentation": DINOv2ImageSegmentationPipeline,
    "depth-estimation": DINOv2DepthEstimationPipeline,
}


def register_pipelines() -> None:
    """Make `transformers.pipeline` find the classes above."""
    for task, pipeline_class in PIPELINES.items():
        # Without `register_pipeline`: a saved pipeline would contain a copy of this code, to be trusted on loading.
        PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline_class
