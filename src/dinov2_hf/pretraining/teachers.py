"""
What a teacher is: it looks at the global crops, and makes of what it saw the targets that students should predict.

Pretraining and the paper's distillation differ in the teacher and in nothing else: here is the average of the student,
and in `frozen_teacher.py` the network of an earlier run. Another one is a class that is made of the averaged network
and answers `tokens` and `targets`.

Shapes: `G` = 2 global crops, `B` images, `h * w` patches, `M` patches that count, `D` hidden size, `K` prototypes.
"""

from dataclasses import dataclass

import torch

from ..models import DINOv2Model
from ..models.patch_map import patch_map
from ..named_objects import Registry
from .centering import Centering
from .cross_entropy import RowTargets
from .heads import BackboneWithHeads


TEACHERS = Registry("teacher class")  # has no names: those of this package are chosen by the kind of the run


@dataclass(frozen=True)
class TeacherTokens:
    """
    What a teacher sees of the global crops, after its final norm and without a gradient.

    Args:
        cls: `(G, B, D)`; of a network without a CLS token its pooled output, or the mean over the patches.
        patches: `(G, B, h, w, D)`.
    """

    cls: torch.Tensor
    patches: torch.Tensor


@dataclass(frozen=True)
class Targets:
    """
    What students should predict: probabilities, in the dtype of the teacher's logits.

    Args:
        cls: `(G, B, K)`.
        patches: a function of some of the `M` rows (a slice) to `(rows, K)`; `None` where no term asks for them.
    """

    cls: torch.Tensor
    patches: RowTargets | None


class EmaTeacher:
    """
    The teacher of pretraining (paper, section 4): the average of the student, which the training loop moves.

    Args:
        network: the average; whoever holds this teacher holds its weights too, and saves them.
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
        """Crops `(G, B, C, H, W)` to what the teacher sees, which are not masked."""
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
            tokens: of one call of `tokens`, or of several in another order.
            patch_indices: those of the flat `G * B * h * w` patches that count, `(M,)`; `None` where no term asks.
            centering: how logits become targets in this step.

        Returns:
            The targets; `None` of a teacher that has no heads.
        """
        patches = None if patch_indices is None else tokens.patches.flatten(0, 3)[patch_indices]
        cls_logits, patch_logits = self.network.project(tokens.cls.flatten(0, 1), patches, centering.chunk_size)
        step = centering.temperature, centering.group
        cls_targets = centering.cls(cls_logits, *step)(slice(None)).unflatten(0, tokens.cls.shape[:2])
        if patch_logits is None:
            return Targets(cls_targets, None)
        return Targets(cls_targets, centering.patches(patch_logits, *step, centering.is_counted))
