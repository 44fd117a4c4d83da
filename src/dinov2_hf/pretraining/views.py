"""
The outputs of student and teacher for the crops of one step: everything that a loss term may read.

Shapes: `G` = 2 global crops, `L` local crops, `B` images per device, `h * w` patches of a global crop, `M` counted
patches of all global crops, `D` the student's hidden size, `K` prototypes.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist

from ..models.patch_map import patch_map
from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .cross_entropy import RowTargets
from .frozen_teacher import FrozenTeacher
from .images_together import in_groups
from .logit_chunks import LogitChunks
from .teachers import Targets, TeacherTokens


@dataclass(frozen=True)
class Crops:
    """
    The output of the collator for `B` images.

    Args:
        global_crops: `(G, B, C, H, W)`.
        local_crops: `(L, B, C, H', W')`; `L` may be 0.
        bool_masked_pos: masked patches, `(G * B, h * w)` booleans, hidden from the student; `None` if there are none.
        masked_indices: the patches that the patch-level loss counts, of the flat `G * B * h * w` ones: `(M,)`, or a
            slice of all.
        masked_weights: `(M,)`, one over the number of counted patches of that crop.
        num_masked: how many of the `M` patches count, a scalar; the others are padding, of weight 0. `None` means all.
    """

    global_crops: torch.Tensor
    local_crops: torch.Tensor
    bool_masked_pos: torch.Tensor | None
    masked_indices: torch.Tensor | slice
    masked_weights: torch.Tensor
    num_masked: torch.Tensor | None = None

    @property
    def is_counted(self) -> torch.Tensor | None:
        """Which of the `M` patches are not padding, as booleans; `None` means all."""
        if self.num_masked is None:
            return None
        return torch.arange(len(self.masked_weights), device=self.masked_weights.device) < self.num_masked

    def shown_whole(self, *, counted: str) -> "Crops":
        """The same crops with nothing hidden; the patches that count are the `"masked"` ones, or `"all"`."""
        if counted == "masked":
            return replace(self, bool_masked_pos=None)
        if self.bool_masked_pos is None:
            raise ValueError("no patch of these crops was masked, so there are no masked patches to count.")
        num_crops, num_patches = self.bool_masked_pos.shape
        weights = self.masked_weights.new_full((num_crops * num_patches,), 1 / num_patches)
        return Crops(self.global_crops, self.local_crops, None, slice(None), weights)


@dataclass
class Views:
    """
    The outputs of both networks in a step. The student's backbone runs when this is constructed. Logits are computed
    when a term first reads them, so logits that no term reads are not computed.

    Attributes:
        config, distillation_config: configurations of the objective; the second is `None` in a pretraining.
        student: the network with its heads or projectors.
        crops: the images.
        teacher: the teacher's tokens.
        targets: the targets that the student should predict; `None` for a teacher without heads.
        needs: the needs that the terms of this step have declared: "cls" or "patches".
        chunk_size: patches whose logits are held at once.
        gram_teacher: an earlier network, if the recipe names one.
        ranks: the ranks that compute this student; `None` means all ranks.
        is_packed: as `packed` of `DINOv2Model.forward_crops`.
        student_cls, local_cls: CLS tokens of the global crops, `(G, B, D)`, and of the local ones, `(L, B, D)`.
    """

    config: DINOv2PreTrainingConfig
    distillation_config: DINOv2DistillationConfig | None
    student: Any
    crops: Crops
    teacher: TeacherTokens
    targets: Targets | None
    needs: Set[str]
    chunk_size: int
    gram_teacher: FrozenTeacher | None = None
    ranks: dist.ProcessGroup | None = None
    is_packed: bool | None = None

    def __post_init__(self) -> None:
        crops, network = self.crops, self.student.backbone
        images, masks = [crops.global_crops.flatten(0, 1)], [crops.bool_masked_pos]
        if len(crops.local_crops):
            images, masks = [*images, crops.local_crops.flatten(0, 1)], [*masks, None]
        # Terms read every CLS token but few patches: a tenth of all tokens, and only these pass the final norm.
        tokens = network.forward_crops(images, masks, self.is_packed, norm=False)
        self._patches_before_norm = patch_map(tokens[0], crops.global_crops, network.config).movedim(1, -1)
        cls = network.layernorm(torch.cat([seen[:, 0] for seen in tokens]))
        num_global = len(tokens[0])
        self.student_cls = cls[:num_global].unflatten(0, crops.global_crops.shape[:2])
        self.local_cls = cls[num_global:].unflatten(0, crops.local_crops.shape[:2])
        self._made_logits: tuple[LogitChunks, LogitChunks | None] | None = None

    @property
    def student_patches(self) -> torch.Tensor:
        """Patch tokens of the global crops, `(G, B, h, w, D)`; each reading applies the final norm to all of them."""
        patches = self.student.backbone.layernorm(self._patches_before_norm)
        return patches.unflatten(0, self.crops.global_crops.shape[:2])

    @property
    def central_patches(self) -> torch.Tensor:
        """The patch token at the centre of each image's first global crop, `(B, D)`."""
        of_first_crop = self._patches_before_norm[: self.crops.global_crops.shape[1]]
        rows, columns = of_first_crop.shape[1:3]
        return self.student.backbone.layernorm(of_first_crop[:, rows // 2, columns // 2])

    @property
    def num_global_crops(self) -> int:
        """All global crops of the step on this device, `G * B`."""
        return self.student_cls.shape[:2].numel()

    @property
    def global_logits(self) -> LogitChunks:
        """The student's logits of the CLS tokens of global crops: `G * B` rows."""
        self._declared("cls")
        return self._logits[0].some(slice(self.num_global_crops))

    @property
    def local_logits(self) -> LogitChunks:
        """The student's logits of the CLS tokens of local crops: `L * B` rows."""
        self._declared("cls")
        return self._logits[0].some(slice(self.num_global_crops, None))

    @property
    def patch_logits(self) -> LogitChunks:
        """The student's logits of the counted patches: `M` rows."""
        self._declared("patches")
        return cast(LogitChunks, self._logits[1])

    @property
    def patch_targets(self) -> RowTargets:
        """The teacher's targets for these patches; see `Targets`."""
        return cast(RowTargets, self._declared("patches").patches)

    @property
    def cls_targets(self) -> torch.Tensor:
        """The teacher's targets for the global crops, `(G, B, K)`."""
        return self._declared("cls").cls

    @property
    def anchor_patches(self) -> torch.Tensor:
        """Patch features of the Gram teacher for global crops, `(G, B, h', w', D')`, without a gradient."""
        if self.gram_teacher is None:
            raise ValueError("a loss term reads features of a Gram teacher, but there is none; set `gram_teacher`.")
        return self.gram_teacher.tokens(self.crops.global_crops).patches

    def cls_in_groups(self, group_size: int | None) -> torch.Tensor:
        """The student's CLS tokens of global crops in groups of images, `(groups, g, D)`; see `in_groups`."""
        return in_groups(self.student_cls, group_size, self.ranks)

    @property
    def _logits(self) -> tuple[LogitChunks, LogitChunks | None]:
        """Logits of all CLS tokens and of the counted patches, at the first use; a shared head is called only once."""
        if self._made_logits is None:  # not a `cached_property`: before Python 3.12 its lock cannot be compiled
            cls = torch.cat([self.student_cls.flatten(0, 1), self.local_cls.flatten(0, 1)])
            patches = None
            if "patches" in self.needs:
                patches = self._patches_before_norm.flatten(0, 2)[self.crops.masked_indices]
                patches = self.student.backbone.layernorm(patches)
            self._made_logits = self.student.project(cls if "cls" in self.needs else cls[:0], patches, self.chunk_size)
        return self._made_logits

    def _declared(self, what: str) -> Targets:
        """The targets, for a term that has declared which of them it reads."""
        if self.targets is None:
            raise ValueError("a loss term reads logits, but the teacher has no heads; compare features.")
        if what not in self.needs:
            raise ValueError(
                f"a loss term reads logits or targets of {what}, which no term of this step has declared; register it"
                f' with `@TERMS.register(name, needs={{"{what}"}})`.'
            )
        return self.targets
