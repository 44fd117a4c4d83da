"""The step of pretraining and distillation: a teacher's targets, each student's view, the terms of the loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils import ModelOutput

from .centering import Centering
from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .frozen_teacher import FrozenTeacher
from .rank_groups import RankGroups
from .teachers import TeacherTokens
from .terms import needs_of, weighted_sum
from .views import Crops, Views


ROWS_AT_ONCE = 32  # rows of targets whose entropies are computed at once, in float32


@dataclass(init=False)
class DINOv2ForPreTrainingOutput(ModelOutput):
    """
    An output with any names. The parts of the loss are those of the terms that ran. With several students each name
    has a prefix, as in `output["small/ibot_loss"]`, and `loss` is the sum over students.

    Args:
        loss: the optimised loss: the sum of the terms, each times its weight.
        dino_local_loss, dino_global_loss: image-level loss of local and global student crops, each a sum over its
            pairs of crops divided by the number of all pairs, `G * L + G * (G - 1)`.
        ibot_loss: patch-level loss; about half an average cross-entropy when half of the crops are masked.
        koleo_loss: sum of the regulariser over the global crops.
        cls_feature_loss, patch_feature_loss: distances of features, in the distillation of features.
        target_entropy: mean entropy of the teacher's image-level targets, in nats. `log K` means uniform targets,
            which teach nothing; 0 means one prototype for each image.
        mean_target: `(K,)`, the teacher's image-level targets averaged over the crops of this device.
        cls_features: `(B, D)`, CLS features for the first global crop of each image, from the teacher, or from the
            student if the teacher is frozen.
        patch_features: `(B, D)`, the feature of the patch in the middle of the same crops. The position is always the
            same, so that patches that only encode their position, and nothing of their image, are equal.

    The last three belong to no loss. They serve to detect a collapse, have no gradient and keep no other tensor in
    memory.
    """

    loss: torch.Tensor | None = None
    dino_local_loss: torch.Tensor | None = None
    dino_global_loss: torch.Tensor | None = None
    ibot_loss: torch.Tensor | None = None
    koleo_loss: torch.Tensor | None = None
    cls_feature_loss: torch.Tensor | None = None
    patch_feature_loss: torch.Tensor | None = None
    target_entropy: torch.Tensor | None = None
    mean_target: torch.Tensor | None = None
    cls_features: torch.Tensor | None = None
    patch_features: torch.Tensor | None = None

    def __init__(self, values: Mapping[str, torch.Tensor] | None = None, **more: torch.Tensor):
        for name, value in {**(values or {}), **more}.items():
            self[name] = value


class Objective:
    """
    `forward` of a module that has `config`, `students` by name, `dino_centering` and `ibot_centering`.

    Attributes:
        teacher_role: the object that makes the targets. It is not a submodule, and may use the weights of any network.
        loss_weights: weights of the terms of its configuration, by name.
        patch_chunk_size: patches whose logits are held at once; changes memory and speed, not results.
        is_packed: whether the student runs all resolutions as one sequence; `None` means on every device except a CPU.
        rank_groups: groups of ranks that each compute one student; `None`: every rank computes all students.
        term_options: keywords of further loss terms, by the names of these; see `term_options`.
    """

    config: DINOv2PreTrainingConfig
    dino_centering: Any  # a module; `None` if there are no heads
    ibot_centering: Any
    distillation_config: DINOv2DistillationConfig | None = None
    patch_chunk_size = 1024
    is_packed: bool | None = None
    rank_groups: RankGroups | None = None
    term_options: Mapping[str, Mapping[str, Any]] = {}
    _gram_teacher: tuple[FrozenTeacher | None] = (None,)

    @property
    def students(self) -> Mapping[str, nn.Module]:
        """The trained networks, by name; a single one has an empty name."""
        raise NotImplementedError

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """See above."""
        raise NotImplementedError

    @property
    def teacher_role(self) -> Any:
        """See `teach_with`."""
        return self._teacher_role[0]

    def teach_with(self, teacher: Any) -> None:
        """Let `teacher` make the targets: an `EmaTeacher`, or another class with `tokens` and `targets`."""
        self._teacher_role = (teacher,)  # in a tuple, where nn.Module does not see it

    def anchor_to(self, gram_teacher: FrozenTeacher) -> None:
        """Let terms compare with a network that is not a submodule, and so is in no checkpoint."""
        self._gram_teacher = (gram_teacher,)  # as `_teacher_role`

    def forward(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        masked_indices: torch.Tensor,
        masked_weights: torch.Tensor,
        teacher_temperature: float,
        loss_weights: Mapping[str, float] | None = None,
        num_masked: torch.Tensor | None = None,
    ) -> DINOv2ForPreTrainingOutput:
        r"""
        Args:
            global_crops (`torch.Tensor` of shape `(G, B, C, H, W)`): normalised pixels.
            local_crops (`torch.Tensor` of shape `(L, B, C, h, w)`): normalised pixels; `L` may be 0.
            bool_masked_pos (`torch.BoolTensor` of shape `(G * B, N)`): masked patches, crop-major.
            masked_indices (`torch.LongTensor` of shape `(M,)`): indices of the masked patches in the flat
                `(G * B * N)` grid.
            masked_weights (`torch.Tensor` of shape `(M,)`): one over the number of masked patches of that crop.
            teacher_temperature (`float`): temperature of the teacher's targets at this step, above 0.
            loss_weights (`dict[str, float]`, *optional*): weights at this step of further terms, beyond those of the
                configuration, by their names in `TERMS` or as `package.module:function`. A term of weight 0 is left
                out.
            num_masked (`torch.LongTensor` of shape `()`, *optional*): how many of the `M` patches are really masked,
                if the last of them are padding of weight 0.
        """
        weights = {**self.loss_weights, **(loss_weights or {})}
        weights = {name: weight for name, weight in weights.items() if weight}
        crops = Crops(global_crops, local_crops, bool_masked_pos, masked_indices, masked_weights, num_masked)
        tokens, group = self.teacher_role.tokens(global_crops), None
        if self.rank_groups is not None:
            crops, tokens = self.rank_groups.exchange_step(crops, tokens)
            group = self.rank_groups.group
        if self.distillation_config is not None:
            crops = crops.shown_whole(counted=self.distillation_config.ibot_tokens)
        output = self.compare(crops, tokens, weights, teacher_temperature, group)
        if self.rank_groups is not None:
            output = self.rank_groups.output_of_all_ranks(output, self.students)
        elif "loss" not in output:
            first, *others = (output[f"{name}/loss"] for name in self.students)
            output["loss"] = sum(others, first)
        return DINOv2ForPreTrainingOutput(output)

    def compare(
        self,
        crops: Crops,
        tokens: TeacherTokens,
        weights: Mapping[str, float | torch.Tensor],
        teacher_temperature: float | torch.Tensor,
        group: dist.ProcessGroup | None,
    ) -> dict[str, torch.Tensor]:
        """
        Compare each student of this rank with the teacher's output for the same crops.

        Args:
            tokens: the teacher's tokens of the crops.
            weights: weights of the terms of this step, by name.
            group: the ranks whose targets depend on one another; `None` means all ranks.

        Returns:
            The output of `forward`; with several students, each has its own names.
        """
        needs = needs_of(weights)
        centering = Centering(
            self.dino_centering,
            self.ibot_centering,
            teacher_temperature,
            self.patch_chunk_size,
            group,
            crops.is_counted,
        )
        targets = self.teacher_role.targets(tokens, crops.masked_indices if "patches" in needs else None, centering)
        output: dict[str, torch.Tensor] = {}
        for name, student in self.students.items():
            if self.rank_groups is None or name == self.rank_groups.name:
                views = Views(
                    self.config, self.distillation_config, student, crops, tokens, targets, needs,
                    self.patch_chunk_size, *self._gram_teacher, group, self.is_packed,
                )  # fmt: skip
                of_student = weighted_sum(weights, views, self.term_options) | self._signs_of_collapse(views)
                output |= {f"{name}/{key}" if name else key: value for key, value in of_student.items()}
        return output

    @torch.no_grad()
    def _signs_of_collapse(self, views: Views) -> dict[str, torch.Tensor]:
        """The values of `DINOv2ForPreTrainingOutput` that are not losses, from the network that could collapse."""
        if getattr(self.teacher_role, "frozen", False):
            cls, patches = views.student_cls[0], views.central_patches
        else:
            rows, columns = views.teacher.patches.shape[2:4]
            cls, patches = views.teacher.cls[0], views.teacher.patches[0, :, rows // 2, columns // 2]
        # Clones, because views would keep all tokens in memory.
        signs = {"cls_features": cls.detach().clone(), "patch_features": patches.detach().clone()}
        if views.targets is None:
            return signs
        targets = views.targets.cls.flatten(0, 1)
        entropies = [torch.special.entr(rows.float()).sum(dim=-1) for rows in targets.split(ROWS_AT_ONCE)]
        mean_target = targets.mean(dim=0, dtype=torch.float32)
        return {"target_entropy": torch.cat(entropies).mean(), "mean_target": mean_target, **signs}
