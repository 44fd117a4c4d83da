"""Our image processors under transformers' common tests. Runs inside the unpacked source distribution."""

import unittest

from dinov2_hf import DINOv2ImageProcessor, DINOv2ImageProcessorPil
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin


class DINOv2ImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs = {"size": {"shortest_edge": 20}, "crop_size": {"height": 18, "width": 18}} | kwargs
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        """The original reads transformers' static table."""
        return {"torchvision": DINOv2ImageProcessor, "pil": DINOv2ImageProcessorPil}


class DINOv2ImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = DINOv2ImageProcessingTester
