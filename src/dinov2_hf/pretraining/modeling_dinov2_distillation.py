"""
One frozen teacher and one or several students (paper, section 5, "knowledge distillation"), in one module whose
`forward` returns the loss.

It is pretraining with two changes: the targets come from a frozen teacher, and the student sees its global crops
whole. The average of a student's weights, which makes the targets in pretraining, is only kept to be exported.

Shapes: `B` images per device, `G` = 2 global crops, `L` local crops, `N` patches of a global crop, `K` prototypes,
`D` hidden size.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import nn

from .centering import build_centering
from .configuration_dinov2_distillation import DINOv2DistillationConfig
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .features_objective import BackboneWithProjectors, feature_loss, resample_grid
from .frozen_teacher import BottleneckOutput, FeatureOutput, FeatureTeacher, TeacherWithHeads
from .logit_chunks import LogitChunks, chunked_patch_loss
from .losses import image_level_losses, koleo_loss
from .modeling_dinov2_pretraining import BackboneWithHeads, DINOv2ForPreTraining, entropy
from .rank_groups import RankGroups


class DINOv2ForDistillation(nn.Module):
    """
    Students, their averages and the loss. `forward` takes what that of `DINOv2ForPreTraining` takes; the averages are
    moved by the training loop, in the same way.

    The teacher is no submodule: its weights are in no state dict and no checkpoint, and wrappers do not shard them.
    Move it to the device of the students before.

    Args:
        config: what all students share.
        students: by name, with heads for the paper's objective and with projectors for that of features; the name of a
            single one may be empty.
        student_configs: by the same names. Loss weights, temperature and centering are those of the first.
        teacher: a `TeacherWithHeads` for the paper's objective, a `FeatureTeacher` for that of features.
        averages: what the averages start from, by the same names; by default copies of the students.
        rank_groups: for students that are each computed by ranks of their own; by default every rank computes all.
    """

    task = "distillation"

    def __init__(
        self,
        config: DINOv2DistillationConfig,
        students: Mapping[str, BackboneWithHeads | BackboneWithProjectors],
        student_configs: Mapping[str, DINOv2PreTrainingConfig],
        teacher: TeacherWithHeads | FeatureTeacher,
        *,
        averages: Mapping[str, nn.Module] | None = None,
        rank_groups: RankGroups | None = None,
    ):
        super().__init__()
        self.distillation_config = config
        self.student_configs = dict(student_configs)
        self.config = next(iter(student_configs.values()))
        self.rank_groups = rank_groups
        self._teacher = (teacher,)  # in a tuple, where nn.Module does not see it
        self.student, self.average = nn.ModuleDict(), nn.ModuleDict()
        for name, student in students.items():
            average = copy.deepcopy(student) if averages is None else averages[name]
            # Nothing is masked. A parameter without gradient would be missed by DDP.
            student.backbone.embeddings.mask_token.requires_grad_(False)
            self.student[_key(name)], self.average[_key(name)] = student, average.requires_grad_(False)
        self.dino_centering = self.ibot_centering = None
        if isinstance(teacher, TeacherWithHeads):
            for name, prototypes in (
                ("dino_centering", teacher.dino_prototypes),
                ("ibot_centering", teacher.ibot_prototypes),
            ):
                centering = build_centering(self.config.centering, len(prototypes), self.config.center_momentum)
                if name in teacher.centers and hasattr(centering, "center"):
                    centering.center.copy_(teacher.centers[name])
                setattr(self, name, centering)
        self.train()

    @property
    def teacher(self) -> TeacherWithHeads | FeatureTeacher:
        """The frozen teacher."""
        return self._teacher[0]

    @property
    def ema_module(self) -> nn.ModuleDict:
        """The modules whose weights average those of `student`."""
        return self.average

    @property
    def students(self) -> dict[str, nn.Module]:
        """What is trained, by name; the only one has an empty name."""
        return {name: self.student[_key(name)] for name in self.student_configs}

    @property
    def averages(self) -> dict[str, nn.Module]:
        """The averages of the students, by the same names; their `backbone` is what is exported."""
        return {name: self.average[_key(name)] for name in self.student_configs}

    def continued_as(self, name: str) -> tuple[DINOv2ForPreTraining | None, dict[str, str]]:
        """
        A pretraining that goes on with a student, its average and their heads, without weights; and the paths of these
        here, with those there. `None` for a student without heads.
        """
        if self.distillation_config.distillation_objective != "paper":
            return None, {}
        with torch.device("meta"):
            whole = DINOv2ForPreTraining._from_config(self.student_configs[name])
        centers = {path: path for path in ("dino_centering", "ibot_centering")}
        return whole, {f"student.{_key(name)}": "student", f"average.{_key(name)}": "teacher", **centers}

    def train(self, mode: bool = True):
        """The averages stay in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self

    def forward(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        masked_indices: torch.Tensor,
        masked_weights: torch.Tensor,
        teacher_temperature: float,
    ) -> dict[str, torch.Tensor]:
        r"""
        Args:
            global_crops (`torch.Tensor` of shape `(G, B, C, H, W)`): normalised pixels.
            local_crops (`torch.Tensor` of shape `(L, B, C, h, w)`): normalised pixels; `L` may be 0.
            bool_masked_pos (`torch.BoolTensor` of shape `(G * B, N)`): patches that count where `ibot_tokens` is
                `"masked"`, crop-major; hidden from nobody.
            masked_indices (`torch.LongTensor` of shape `(M,)`): where that is `True`.
            masked_weights (`torch.Tensor` of shape `(M,)`): one over the chosen patches of that crop.
            teacher_temperature (`float`): of the teacher's targets at this step, above 0.

        Returns:
            `loss`, the sum over the students, and for each student the parts of its loss, and what a collapse is seen
            by (see `DINOv2ForPreTrainingOutput`; the features are those of the student). Names of several students
            are prefixed, as in `"small/ibot_loss"`.
        """
        said = self.teacher(global_crops)
        if self.rank_groups is not None:
            global_crops, local_crops = (
                self.rank_groups.exchange(crops, dim=1) for crops in (global_crops, local_crops)
            )
            said = type(said)(*(self.rank_groups.exchange(value, dim=1) for value in vars(said).values()))
            masks = bool_masked_pos.unflatten(0, (len(global_crops), -1))
            masks = self.rank_groups.exchange(masks, dim=1).flatten(0, 1)
            masked_indices = masks.flatten().nonzero().squeeze(1)
            masked_weights = (1 / masks.sum(dim=1, keepdim=True)).expand_as(masks)[masks]
        if isinstance(said, BottleneckOutput):
            chosen = None if self.distillation_config.ibot_tokens == "all" else (masked_indices, masked_weights)
            objective = self._paper_objective(said, chosen, teacher_temperature)
        else:
            objective = self._features_objective(said)
        output = {}
        for name, student in self.students.items():
            if self.rank_groups is not None and name != self.rank_groups.name:
                continue
            parts = objective(student, global_crops, local_crops)
            output |= {f"{name}/{key}" if name else key: value for key, value in parts.items()}
        if self.rank_groups is not None:
            return self._of_all_ranks(output, len(global_crops[0]) * self.rank_groups.size // len(self.rank_groups))
        if "loss" not in output:
            output["loss"] = sum(output[f"{name}/loss"] for name in self.student_configs)
        return output

    def _paper_objective(
        self, said: BottleneckOutput, chosen: tuple[torch.Tensor, torch.Tensor] | None, temperature: float
    ) -> Callable[..., dict[str, torch.Tensor]]:
        """DINO, iBOT and KoLeo with targets that are made here once; a function of student and crops."""
        config, teacher = self.config, self.teacher
        group = self.rank_groups.group if self.rank_groups is not None else None
        num_crops, num_images, num_patches = said.patches.shape[:3]
        with torch.no_grad(), torch.autocast(said.cls.device.type, enabled=False):
            logits = said.cls @ teacher.dino_prototypes.T
            dino_targets = self.dino_centering(logits, temperature, group)
            rows = said.patches.flatten(0, 2)
            if chosen is None:
                weights = rows.new_full((len(rows),), 1 / num_patches, dtype=torch.float32)
            else:
                rows, weights = rows[chosen[0]], chosen[1]
            ibot_targets = None
            if config.ibot_loss_weight > 0:
                chunk_size = self.distillation_config.patch_chunk_size
                ibot_targets = self.ibot_centering.by_chunks(
                    LogitChunks(rows, teacher.ibot_prototypes, chunk_size), temperature, group
                )
        statistics = {
            "target_entropy": entropy(dino_targets),
            "mean_target": dino_targets.flatten(0, 1).mean(dim=0),
        }

        def objective(
            student: BackboneWithHeads, global_crops: torch.Tensor, local_crops: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            cls_tokens, patches, seen = _student_tokens(student.backbone, global_crops, local_crops)
            patches = patches.flatten(0, 2)
            cls_logits, factors = self._student_heads(
                student, cls_tokens, patches if chosen is None else patches[chosen[0]]
            )
            global_logits = cls_logits[: num_crops * num_images].unflatten(0, (num_crops, num_images))
            local_logits = cls_logits[num_crops * num_images :].unflatten(0, local_crops.shape[:2])
            parts, loss = {}, 0.0
            if config.dino_loss_weight > 0:
                parts = image_level_losses(local_logits, global_logits, dino_targets, config.student_temperature)
                loss = loss + config.dino_loss_weight * sum(parts.values())
            if ibot_targets is not None:
                parts["ibot_loss"] = chunked_patch_loss(
                    factors, ibot_targets, weights, num_crops * num_images, config.student_temperature
                )
                loss = loss + config.ibot_loss_weight * parts["ibot_loss"]
            koleo = self._koleo(cls_tokens, num_crops, num_images)
            return _with_koleo(loss, parts, koleo, config.koleo_loss_weight) | statistics | seen

        return objective

    def _student_heads(
        self, student: BackboneWithHeads, cls_tokens: torch.Tensor, patches: torch.Tensor
    ) -> tuple[torch.Tensor, LogitChunks]:
        """CLS tokens `(n, D)` to logits `(n, K)`, and patch tokens to the factors of theirs; one call when shared."""
        if student.ibot_head is not None:
            cls_logits, (rows, prototypes) = student.dino_head(cls_tokens), student.ibot_head(patches, factored=True)
        else:
            rows, prototypes = student.dino_head(torch.cat([cls_tokens, patches]), factored=True)
            cls_rows, rows = rows.split([len(cls_tokens), len(patches)])
            cls_logits = nn.functional.linear(cls_rows, prototypes)
        device_type = rows.device.type
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
            rows, prototypes = rows.to(dtype), prototypes.to(dtype)
        return cls_logits, LogitChunks(rows, prototypes, self.distillation_config.patch_chunk_size)

    def _features_objective(self, said: FeatureOutput) -> Callable[..., dict[str, torch.Tensor]]:
        """Distances of CLS and patch features from the teacher's; a function of student and crops."""
        config, shared = self.distillation_config, self.config

        def objective(
            student: BackboneWithProjectors, global_crops: torch.Tensor, local_crops: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            cls_tokens, patches, seen = _student_tokens(student.backbone, global_crops, local_crops[:0])
            num_crops, num_images = global_crops.shape[:2]
            parts, loss = {}, 0.0
            if student.cls_projector is not None:
                projected = student.cls_projector(cls_tokens)
                parts["cls_feature_loss"] = feature_loss(projected, said.cls.flatten(0, 1), config.feature_loss)
                loss = loss + config.cls_feature_loss_weight * parts["cls_feature_loss"]
            if student.patch_projector is not None:
                patch_size = student.backbone.config.patch_size
                grid = tuple(side // patch_size for side in global_crops.shape[-2:])
                wanted = resample_grid(said.patches.flatten(0, 1), grid).flatten(1, 2)
                projected = student.patch_projector(patches.flatten(0, 1))
                parts["patch_feature_loss"] = feature_loss(projected, wanted, config.feature_loss)
                loss = loss + config.patch_feature_loss_weight * parts["patch_feature_loss"]
            koleo = self._koleo(cls_tokens, num_crops, num_images)
            return _with_koleo(loss, parts, koleo, shared.koleo_loss_weight) | seen

        return objective

    def _koleo(self, cls_tokens: torch.Tensor, num_crops: int, num_images: int) -> torch.Tensor | None:
        """Sum of the regulariser over the global crops."""
        if self.config.koleo_loss_weight == 0:
            return None
        global_cls = cls_tokens[: num_crops * num_images].unflatten(0, (num_crops, num_images))
        return sum(koleo_loss(tokens) for tokens in global_cls)

    def _of_all_ranks(self, own: dict[str, torch.Tensor], num_images: int) -> dict[str, torch.Tensor]:
        """
        What this rank computed of its student, so that means over all ranks are those over the ranks of each student,
        of gradients too; and what it says of the others: zeros, and features that do not count.
        """
        factor = len(self.rank_groups) / self.rank_groups.size
        mine = self.rank_groups.name
        output = {}
        for name, student in self.students.items():
            for key, value in own.items():
                key = key.removeprefix(f"{mine}/")
                if key.endswith("_features"):
                    width = student.backbone.config.hidden_size
                    missing = value.new_full((num_images, width), torch.nan)
                    output[f"{name}/{key}"] = value[:num_images] if name == mine else missing
                else:
                    output[f"{name}/{key}"] = value * factor if name == mine else torch.zeros_like(value).detach()
        # DDP waits for a gradient of every parameter.
        idle = [p for name, s in self.students.items() if name != mine for p in s.parameters() if p.requires_grad]
        output["loss"] = output[f"{mine}/loss"] + sum(0 * parameter.sum() for parameter in idle)
        return output


def _key(name: str) -> str:
    """Of a `ModuleDict`, whose keys must not be names of its methods, such as "half"."""
    return f"{name}_student" if name else "student"


def _student_tokens(
    backbone: nn.Module, global_crops: torch.Tensor, local_crops: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """
    CLS tokens of global, then local crops `((G + L) * B, D)`; patches of the global ones `(G, B, N, D)`; and the
    `cls_features` and `patch_features` (of the patch in the middle) of the first crop, each `(B, D)`, detached.
    """
    crops = [global_crops.flatten(0, 1)] + ([local_crops.flatten(0, 1)] if len(local_crops) else [])
    tokens = backbone.forward_crops(crops)
    cls_tokens = torch.cat([group[:, 0] for group in tokens])
    patches = tokens[0][:, 1 + backbone.config.num_register_tokens :].unflatten(0, global_crops.shape[:2])
    rows, columns = (side // backbone.config.patch_size for side in global_crops.shape[-2:])
    seen = {
        "cls_features": cls_tokens[: global_crops.shape[1]].detach().clone(),  # a view would keep all tokens alive
        "patch_features": patches[0, :, rows // 2 * columns + columns // 2].detach().clone(),
    }
    return cls_tokens, patches, seen


def _with_koleo(loss, parts: dict[str, torch.Tensor], koleo: torch.Tensor | None, weight: float) -> dict:
    if koleo is None:
        return {"loss": loss, **parts}
    return {"loss": loss + weight * koleo, **parts, "koleo_loss": koleo}
