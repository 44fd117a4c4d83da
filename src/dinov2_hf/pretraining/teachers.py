"""
Teachers: a teacher processes the global crops, and makes from its tokens the targets that students should predict.

Pretraining and the paper's distillation differ only in the teacher: this file has the average of the student, and
`frozen_teacher.py` has the network of an earlier run. Your own teacher is a class that is constructed from the
averaged network and has the methods `tokens` and `targets`.

Shapes: `G` = 2 global crops, `B` images, `h * w` patches, `M` patches in the loss, `D` hidden size, `K` prototypes.
"""

from dataclasses import dataclass

import torch

from ..models import DINOv2Model
from ..models.patch_map import patch_map
from ..named_objects import Registry
from .centering import Centering
from .cross_entropy import RowTargets
from .heads import BackboneWithHeads


TEACHERS = Registry("teacher class")  # has no names: the kind of the run chooses the teachers of this package


@dataclass(frozen=True)
class TeacherTokens:
    """
    The teacher's tokens of the global crops, after its final norm and without a gradient.

    Args:
        cls: `(G, B, D)`; for a network without a CLS token its pooled output, or the mean over the patches.
        patches: `(G, B, h, w, D)`.
    """

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Targets:
    """
    The targets that students should predict: probabilities, in the dtype of the teacher's logits.

    Args:
        cls: `(G, B, K)`.
        patches: a function from some of the `M` rows (a slice) to `(rows, K)`; `None` if no term needs them.
    """

    cls: torch.Tensor
    patches: RowTargets | None


class EmaTeacher:
    """
    The teacher of pretraining (paper, section 4): the average of the student, which the training loop updates.

    Args:
        network: the average. The owner of this teacher also owns its weights, and saves them.
    """

    frozen = False

    def __init__(self, network: BackboneWithHeads):
        self.network = network

    @property
    def backbone(self) -> DINOv2Model:
        """The network without heads."""
        return self.network.backbone

    @torch.no_grad()
    def tokens(self, global_crops: torch.Tensor) -> TeacherTokens:
        """The teacher's tokens of crops `(G, B, C, H, W)`, which are not masked."""
        backbone = self.backbone
        tokens, leading = backbone(global_crops.flatten(0, 1)).last_hidden_state, global_crops.shape[:2]
        patches = patch_map(tokens, global_crops, backbone.config).movedim(1, -1)
        return TeacherTokens(tokens[:, 0].unflatten(0, leading), patches.unflatten(0, leading))

    @torch.no_grad()
    def targets(
        self, tokens: TeacherTokens, patch_indices: torch.Tensor | slice | None, centering: Centering
    ) -> Targets | None:
        """
        Args:
            tokens: the result of one call of `tokens`, or of several in another order.
            patch_indices: indices of the counted patches among the flat `G * B * h * w` ones, `(M,)`; `None` if no
                term needs them.
            centering: how logits become targets in this step.

        Returns:
            The targets; `None` for a teacher without heads.
        """
        patches = None if patch_indices is None else tokens.patches.flatten(0, 3)[patch_indices]
        cls_logits, patch_logits = self.network.project(tokens.cls.flatten(0, 1), patches, centering.chunk_size)
        step = centering.temperature, centering.group
        cls_targets = centering.cls(cls_logits, *step)(slice(None)).unflatten(0, tokens.cls.shape[:2])
        if patch_logits is None:
            return Targets(cls_targets, None)
        return Targets(cls_targets, centering.patches(patch_logits, *step, centering.is_counted))
