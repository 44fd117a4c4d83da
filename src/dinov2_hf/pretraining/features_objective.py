"""
Distillation of features. It is not in the paper. It is for teachers without heads, such as every released DINOv2.

The student's CLS and patch tokens go through a projector to the teacher's width and are compared with the teacher's.

Shapes: `G` = 2 global crops, `B` images, `h * w` patches, `D` the student's and `D'` the teacher's hidden size.
"""

import torch
from torch import nn

from ..models import DINOv2Config, DINOv2Model


class BackboneWithProjectors(nn.Module):
    """
    A student's backbone, with a projector for CLS and one for patches.

    Args:
        cls_width, patch_width: widths of the teacher's features; `None` for no projector.
    """

    def __init__(
        self,
        backbone_config: DINOv2Config,
        *,
        cls_width: int | None,
        patch_width: int | None,
        projector_hidden_size: int,
        attn_implementation: str = "sdpa",
    ):
        super().__init__()
        self.backbone = DINOv2Model._from_config(backbone_config, attn_implementation=attn_implementation)

        def projector(width: int | None) -> nn.Module | None:
            if not width:
                return None
            std = backbone_config.initializer_range
            return build_projector(backbone_config.hidden_size, projector_hidden_size, width, std=std)

        self.cls_projector, self.patch_projector = projector(cls_width), projector(patch_width)


def build_projector(size_in: int, hidden_size: int, size_out: int, *, std: float) -> nn.Module:
    """A linear map, or with a `hidden_size` above 0 two linear maps with a GELU between them."""
    widths = [size_in, hidden_size, size_out] if hidden_size else [size_in, size_out]
    layers: list[nn.Module] = []
    for width_in, width_out in zip(widths, widths[1:], strict=False):
        linear = nn.Linear(width_in, width_out)
        nn.init.trunc_normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.GELU()]
    return nn.Sequential(*layers[:-1])


def feature_loss(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """
    Mean distance of features, in float32.

    Args:
        student, teacher: `(..., D')`.
        kind: `"cosine"`, one minus the cosine, in [0, 2]; or `"smooth_l1"`, with a threshold of 1, to the teacher's
            features after a norm over their channels, because a few channels are far larger than the others.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if kind == "cosine":
            return 1 - nn.functional.cosine_similarity(student, teacher, dim=-1).mean()
        return nn.functional.smooth_l1_loss(student, nn.functional.layer_norm(teacher, teacher.shape[-1:]))


def resample_grid(patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """
    Resample patch features to another grid, bilinear and antialiased: `(n, h, w, D)` to `(n, *grid, D)`. They are
    unchanged if the grid is the same.
    """
    if tuple(patches.shape[1:3]) == tuple(grid):
        return patches
    maps = patches.float().movedim(-1, 1)
    return nn.functional.interpolate(maps, grid, mode="bilinear", antialias=True, align_corners=False).movedim(1, -1)
