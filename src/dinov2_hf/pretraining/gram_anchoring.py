"""
Gram anchoring (DINOv3 paper, section 4). In long training, patch features of one image become too similar, while CLS
features still improve. Gram anchoring keeps the similarities between the student's patches close to the similarities
in an earlier network, the Gram teacher. The features themselves may change.

Shapes: `n` crops, `h * w` patches, `D` hidden size of the student, `D'` of the Gram teacher.
"""

import torch

from .features_objective import resample_grid


def gram_anchoring_loss(student: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    """
    `|X_S X_S^T - X_G X_G^T|_F^2` of the L2-normalised patches of each crop, divided by the number of pairs of patches,
    so that a weight means the same for crops of any size; averaged over crops, in float32.

    Args:
        student: `(n, h, w, D)`.
        anchor: patches of the Gram teacher, `(n, h', w', D')`. If its grid differs, they are resampled to the
            student's.
    """
    with torch.autocast(student.device.type, enabled=False):
        height, width = student.shape[1:3]
        anchor = resample_grid(anchor, (height, width))
        difference = _similarities(student) - _similarities(anchor)
        return difference.square().mean()


def _similarities(patches: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs of patches of a crop, `(n, h * w, h * w)`."""
    directions = torch.nn.functional.normalize(patches.float().flatten(1, 2), dim=-1)
    return directions @ directions.mT
