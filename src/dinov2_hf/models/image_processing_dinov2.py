"""Image processor of DINOv2: resize the short side, centre crop, rescale, normalise."""

from transformers.image_processing_backends import TorchvisionBackend

from .evaluation_transform import EvaluationTransform


class DINOv2ImageProcessor(EvaluationTransform, TorchvisionBackend):
    """`EvaluationTransform` on torchvision."""
