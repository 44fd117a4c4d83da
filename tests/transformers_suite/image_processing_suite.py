"""Our image processors under transformers' common tests. Runs inside the unpacked source distribution."""

import unittest

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput

from dinov2_hf import DINOv2ImageProcessor, DINOv2ImageProcessorPil
from tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)


class DINOv2ImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}} | kwargs
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        """The original reads transformers' static table."""
        return {"torchvision": DINOv2ImageProcessor, "pil": DINOv2ImageProcessorPil}

    def prepare_post_process_semantic_segmentation_inputs(self):
        """The original takes height and width of `size`, which is a shortest edge here."""
        expected = {"num_labels": 3, "height": 4, "width": 5}
        return {"outputs": SemanticSegmenterOutput(logits=torch.randn(self.batch_size, *expected.values()))}, expected


class DINOv2ImageProcessingTest(PostProcessSemanticSegmentationTestMixin, ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = DINOv2ImageProcessingTester
