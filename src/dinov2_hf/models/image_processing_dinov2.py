"""Image processor of DINOv2: resize the short side, centre crop, rescale, normalise."""

from transformers.image_processing_backends import TorchvisionBackend

from .configuration_dinov2 import DINOv2Config
from .evaluation_transform import EvaluationTransform


class DINOv2ImageProcessor(EvaluationTransform, TorchvisionBackend):  # type: ignore[misc]  # keywords are handed on
    """`EvaluationTransform` on torchvision."""


def image_processor_of(config: DINOv2Config, resize_size: int | None = None, **values) -> DINOv2ImageProcessor:
    """
    The image processor of a backbone at the `image_size` of its configuration.

    Args:
        resize_size: short side in pixels before the centre crop; by default with the usual margin of 256 / 224.
        values: arguments of `DINOv2ImageProcessor`, such as `image_mean`.
    """
    size = config.image_size
    return DINOv2ImageProcessor(
        size={"shortest_edge": resize_size or round(size * 256 / 224)},
        crop_size={"height": size, "width": size},
        do_convert_rgb=config.num_channels == 3,
        **values,
    )
