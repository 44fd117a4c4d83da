"""The image processor of DINOv2 on PIL and NumPy, for machines without torchvision."""

from transformers.image_processing_backends import PilBackend

from .evaluation_transform import EvaluationTransform


class DINOv2ImageProcessorPil(EvaluationTransform, PilBackend):
    """
    As `DINOv2ImageProcessor`, and loaded from the same files, but PIL resizes, as in the original. The results of the
    two differ by one grey level in photographs, and by up to 9 of 255 in pure noise.
    """
