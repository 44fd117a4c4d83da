"""
The frozen teacher of a distillation, and its output for the global crops.

Shapes: `G` = 2 global crops, `B` images, `N = h * w` patches, `D` hidden size, `K` prototypes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .centering import Centering
from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .heads import BackboneWithHeads
from .teachers import EmaTeacher, Targets, TeacherTokens


class FrozenTeacher(nn.Module):
    """
    A network that only runs in evaluation mode and without gradients. With the heads of an earlier pretraining it is
    the teacher of the paper. Without heads, it is any vision network that `AutoModel` loads (a transformer with or
    without CLS token, or a convolutional network), and its features are compared.

    With `bf16`, its matrices are stored in bfloat16, which halves the memory, and it runs under autocast. The result
    is bit for bit the same as with float32 weights, because autocast would round them at every use.

    Args:
        centers: running centres `(K,)` at the end of the pretraining, by the names of their modules.
        bf16: run in bfloat16.
        pixel_mean, pixel_std: values that the crops were normalised with; `None` means that the teacher expects the
            same.
        own_mean, own_std: values that the teacher expects.
        image_size: side in pixels to which the crops are resized for the teacher; `None` does not resize them.
    """

    frozen = True

    def __init__(
        self,
        network: BackboneWithHeads | PreTrainedModel,
        *,
        centers: Mapping[str, torch.Tensor] | None = None,
        bf16: bool = False,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        own_mean: Sequence[float] | None = None,
        own_std: Sequence[float] | None = None,
        image_size: int | None = None,
    ):
        super().__init__()
        self.network = getattr(network, "vision_model", network)  # the vision half of CLIP and similar models
        self.centers = dict(centers or {})
        self.bf16 = bf16
        self.image_size = image_size
        if bf16:
            for module in self.network.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(torch.bfloat16)
        self.register_buffer("scale", None)
        self.register_buffer("shift", None)
        if own_mean is not None and pixel_mean is not None:
            scale = torch.tensor(pixel_std) / torch.tensor(own_std)
            shift = (torch.tensor(pixel_mean) - torch.tensor(own_mean)) / torch.tensor(own_std)
            if not (torch.allclose(scale, torch.ones(())) and torch.allclose(shift, torch.zeros(()), atol=1e-6)):
                self.scale, self.shift = scale[:, None, None], shift[:, None, None]
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """The teacher stays in evaluation mode."""
        return super().train(False)

    @property
    def has_heads(self) -> bool:
        """Whether it makes targets; otherwise only its features can be compared."""
        return isinstance(self.network, BackboneWithHeads)

    @property
    def backbone(self) -> Any:
        """The network without heads."""
        return self.network.backbone if self.has_heads else self.network

    def prepare(self, global_crops: torch.Tensor) -> torch.Tensor:
        """Convert crops `(G, B, C, H, W)` of the students to those that the teacher expects, `(G * B, C, H', W')`."""
        crops = global_crops.flatten(0, 1)
        if self.scale is not None:
            crops = crops * self.scale + self.shift
        if self.image_size is not None and crops.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            crops = nn.functional.interpolate(crops, size, mode="bicubic", antialias=True, align_corners=False)
        return crops

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision of the teacher, whatever the precision of the run."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def tokens(self, global_crops: torch.Tensor) -> TeacherTokens:
        """
        The teacher's tokens of crops `(G, B, C, H, W)`, in its precision.

        Raises:
            `ValueError`: the tokens of the network do not form a grid.
        """
        crops = self.prepare(global_crops)
        with self.autocast(crops.device):
            output = self.backbone(pixel_values=crops)
        features, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
        if features.dim() == 4:  # feature maps (n, D, h, w)
            prefix, patches = None, features.movedim(1, -1)
        else:
            height, width = self._grid(features.shape[1], crops.shape[-2:])
            num_prefix = features.shape[1] - height * width
            prefix = features[:, :num_prefix]
            patches = features[:, num_prefix:].unflatten(1, (height, width))
        if prefix is not None and prefix.shape[1]:
            cls = prefix[:, 0]
        elif pooled is not None:
            cls = pooled.flatten(1)
        else:
            cls = patches.mean(dim=(1, 2))
        # Heads in bfloat16 would round the float32 tokens of a final norm anyway, and this halves the exchanged bytes.
        dtype = torch.bfloat16 if self.bf16 and self.has_heads else torch.float32
        return TeacherTokens(*(seen.to(dtype).unflatten(0, global_crops.shape[:2]) for seen in (cls, patches)))

    @torch.no_grad()
    def targets(
        self, tokens: TeacherTokens, patch_indices: torch.Tensor | slice | None, centering: Centering
    ) -> Targets | None:
        """As `EmaTeacher.targets`; `None` without heads."""
        if not self.has_heads:
            return None
        with self.autocast(tokens.cls.device):
            return EmaTeacher.targets(self, tokens, patch_indices, centering)  # type: ignore[arg-type]

    def widths(self, num_channels: int, crop_size: int, config: DINOv2DistillationConfig) -> dict[str, int | None]:
        """
        `cls_width` and `patch_width` of its features, `None` for features whose weight is 0. They are found by running
        the teacher on an empty crop of `crop_size` pixels.

        Raises:
            `ValueError`: it cannot process such a crop.
        """
        device = next(self.network.parameters()).device
        size = self.image_size or crop_size
        try:
            seen = self.tokens(torch.zeros(1, 1, num_channels, crop_size, crop_size, device=device))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"the teacher, a {type(self.network).__name__}, cannot read crops of {size} pixels ({reason}); set"
                " `teacher_image_size` to a size that it can."
            ) from error
        return {
            "cls_width": seen.cls.shape[-1] if config.cls_feature_loss_weight else None,
            "patch_width": seen.patches.shape[-1] if config.patch_feature_loss_weight else None,
        }

    def _grid(self, num_tokens: int, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the patches, which are the last tokens."""
        patch_size = getattr(self.backbone.config, "patch_size", None)
        if patch_size is not None:
            patch = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
            grid = (size[0] // patch[0], size[1] // patch[1])
            if grid[0] * grid[1] <= num_tokens:
                return grid
        side = math.isqrt(num_tokens)  # for networks that merge patches
        if side * side == num_tokens:
            return side, side
        raise ValueError(
            f"the teacher, a {type(self.backbone).__name__}, gives {num_tokens} tokens for an image of {size[0]} x"
            f" {size[1]} pixels, which do not form a grid of patches; use a teacher whose patches do."
        )
