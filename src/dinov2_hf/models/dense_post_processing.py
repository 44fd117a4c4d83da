"""Turns outputs of the dense heads into masks and depth maps of the size of the images, as pipelines need them."""

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate
from transformers import BatchFeature
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput


class DensePostProcessing:
    """The post-processing of both image processors for the outputs of the heads for segmentation and depth."""

    def post_process_semantic_segmentation(
        self,
        outputs: SemanticSegmenterOutput,
        target_sizes: Sequence[tuple[int, int]] | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[BatchFeature]:
        """
        The most likely class of every pixel.

        Args:
            outputs: with `logits` `(B, num_labels, h, w)`.
            target_sizes: `(height, width)` for each image. The logits are first resized to it (bilinear); `None` keeps
                one logit for each patch.
            return_segmentation_scores: also return the resized logits.

        Returns:
            `B` tensors `(height, width)` of class numbers; with scores, `B` times `segmentation`, such a tensor, and
            `segmentation_scores` `(num_labels, height, width)`.

        Raises:
            `ValueError`: there are not as many sizes as images.
        """
        scores = [logits[0] for logits in resize_each(outputs["logits"].float(), target_sizes, "target_sizes")]
        classes = [logits.argmax(dim=0) for logits in scores]
        if not return_segmentation_scores:
            return classes
        return [
            BatchFeature({"segmentation": own, "segmentation_scores": logits})
            for own, logits in zip(classes, scores, strict=True)
        ]

    def post_process_depth_estimation(
        self, outputs: DepthEstimatorOutput, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """
        The depth of every pixel, resized (bilinear) as in the original.

        Args:
            outputs: with `predicted_depth` `(B, h, w)`.
            target_sizes: as in `post_process_semantic_segmentation`.

        Returns:
            `B` dictionaries of `predicted_depth` `(height, width)`, in the unit of the model.

        Raises:
            `ValueError`: there are not as many sizes as images.
        """
        depths = resize_each(outputs["predicted_depth"].float().unsqueeze(1), target_sizes, "target_sizes")
        return [{"predicted_depth": depth[0, 0]} for depth in depths]


def resize_each(maps: torch.Tensor, sizes: Sequence[tuple[int, int]] | None, field: str) -> list[torch.Tensor]:
    """`B` maps `(1, C, height, width)` from `(B, C, h, w)`."""
    each = list(maps.split(1))
    if sizes is None:
        return each
    if len(sizes) != len(each):
        raise ValueError(f"`{field}` has {len(sizes)} sizes, but there are {len(each)} images; give one for each.")
    return [
        interpolate(one, tuple(map(int, size)), mode="bilinear", align_corners=False)
        for one, size in zip(each, sizes, strict=True)
    ]
