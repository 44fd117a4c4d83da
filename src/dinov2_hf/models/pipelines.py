"""The pipelines of transformers for images, decoding as in training where the model is ours.

A pipeline turns what it is handed into RGB before the image processor sees it: 16 bits are cut off at 255, and what is
transparent takes whatever colour lies below. The classes here decode first. transformers finds them by the task; for
any image processor but ours they give its own pipeline, of its own class.
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
    """What the four pipelines share."""

    def __new__(cls, *args: Any, image_processor: Any = None, **kwargs: Any):
        if image_processor is None or isinstance(image_processor, DecodedInputs):  # None: it is being copied
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
        # Not by `register_pipeline`: a saved pipeline would carry a copy of this code, to be trusted on loading.
        PIPELINE_REGISTRY.supported_tasks[task]["impl"] = pipeline_class
