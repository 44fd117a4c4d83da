"""
Student, teacher and the loss between them (paper, section 4), in one module whose `forward` returns the loss.

Shapes: `B` images per device, `G` = 2 global crops, `L` local crops, `N` patches of a global crop, `M` masked patches
in the batch, `K` prototypes, `D` hidden size.
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from ..models import DINOv2Config, DINOv2Model
from ..models.checkpoint_keys import SavesCheckpointKeysAsTheyAre
from .centering import build_centering
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .heads import ProjectionHead, Prototypes
from .losses import ibot_loss, image_level_losses, koleo_loss


@dataclass
class DINOv2ForPreTrainingOutput(ModelOutput):
    """
    Args:
        loss: what is optimised: `dino_loss_weight * (dino_local_loss + dino_global_loss) + ibot_loss_weight *
            ibot_loss + koleo_loss_weight * koleo_loss`.
        dino_local_loss, dino_global_loss: image-level loss of local and global student crops, each a sum over its
            pairs of crops divided by the number of all pairs, `G * L + G * (G - 1)`.
        ibot_loss: patch-level loss; about half an average cross-entropy when half of the crops are masked.
        koleo_loss: sum of the regulariser over the global crops.
        target_entropy: mean entropy of the teacher's image-level targets, in nats. `log K` means uniform targets, that
            teach nothing; 0 means one prototype for each image.
        mean_target: `(K,)`, the teacher's image-level targets averaged over the crops of this device.
        cls_features: `(B, D)`, CLS features of the teacher for the first global crop of each image.
        patch_features: `(B, D)`, for the same crops the teacher's feature of the patch in the middle. Always the same
            position: patches that tell where they are, and nothing of their image, must look alike.

    The last three belong to no loss: they are there to see a collapse with, carry no gradient and keep no other tensor
    alive.
    """

    loss: torch.Tensor | None = None
    dino_local_loss: torch.Tensor | None = None
    dino_global_loss: torch.Tensor | None = None
    ibot_loss: torch.Tensor | None = None
    koleo_loss: torch.Tensor | None = None
    target_entropy: torch.Tensor | None = None
    mean_target: torch.Tensor | None = None
    cls_features: torch.Tensor | None = None
    patch_features: torch.Tensor | None = None


class BackboneWithHeads(nn.Module):
    """A backbone and its projection heads; `ibot_head` is `None` when patches share the DINO head."""

    def __init__(self, config: DINOv2PreTrainingConfig, backbone_config: DINOv2Config):
        super().__init__()
        self.backbone = DINOv2Model(backbone_config)
        shape = {"head_hidden_size": config.head_hidden_size, "num_layers": config.head_num_layers}
        self.dino_head = ProjectionHead(
            backbone_config.hidden_size, config.num_prototypes, bottleneck_size=config.bottleneck_size, **shape
        )
        self.ibot_head = None
        if config.separate_ibot_head:
            self.ibot_head = ProjectionHead(
                backbone_config.hidden_size,
                config.ibot_num_prototypes or config.num_prototypes,
                bottleneck_size=config.ibot_bottleneck_size or config.bottleneck_size,
                **shape,
            )

    def project(self, cls_tokens: torch.Tensor, patch_tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """CLS tokens `(n, D)` and patch tokens `(M, D)` to logits `(n, K)` and `(M, K)`; one call when shared."""
        if self.ibot_head is not None:
            return self.dino_head(cls_tokens), self.ibot_head(patch_tokens)
        logits = self.dino_head(torch.cat([cls_tokens, patch_tokens]))
        return logits.split([len(cls_tokens), len(patch_tokens)])


class DINOv2ForPreTraining(SavesCheckpointKeysAsTheyAre, PreTrainedModel):
    """
    DINO on CLS tokens, iBOT on masked patches, KoLeo on CLS features; the teacher is an average of the student.

    `forward` takes exactly what the collator makes, plus the teacher's temperature. The module does not move the
    teacher: the training loop does, with `update_ema(model.ema_module, model.student, momentum)`.
    """

    config: DINOv2PreTrainingConfig
    base_model_prefix = "student"
    main_input_name = "global_crops"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DINOv2Layer", "ProjectionHead"]  # what FSDP2 shards as a unit, unless told otherwise
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    model_tags = ["dinov2"]
    task = "pretraining"

    def __init__(self, config: DINOv2PreTrainingConfig):
        super().__init__(config)
        teacher_backbone_config = copy.deepcopy(config.backbone_config)
        teacher_backbone_config.drop_path_rate = 0.0
        self.student = BackboneWithHeads(config, config.backbone_config)
        self.teacher = BackboneWithHeads(config, teacher_backbone_config)
        self.teacher.requires_grad_(False)
        ibot_prototypes = (config.separate_ibot_head and config.ibot_num_prototypes) or config.num_prototypes
        self.dino_centering = build_centering(config.centering, config.num_prototypes, config.center_momentum)
        self.ibot_centering = build_centering(config.centering, ibot_prototypes, config.center_momentum)
        self.post_init()
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Heads only; the backbones initialise themselves."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.backbone_config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, Prototypes):
            bound = module.weight_v.shape[1] ** -0.5
            init.uniform_(module.weight_v, -bound, bound)
            init.ones_(module.weight_g)

    @property
    def ema_module(self) -> BackboneWithHeads:
        """The module whose weights average the student's and which is exported."""
        return self.teacher

    @property
    def students(self) -> dict[str, BackboneWithHeads]:
        """What is trained, by name; the only one has an empty name."""
        return {"": self.student}

    @property
    def averages(self) -> dict[str, BackboneWithHeads]:
        """The averages of the students, by the same names."""
        return {"": self.teacher}

    def continued_as(self, name: str) -> tuple["DINOv2ForPreTraining", dict[str, str]]:
        """What a later run can continue from, and the paths of its weights here: the whole module."""
        return self, {"": ""}

    def get_input_embeddings(self) -> None:
        """There are two networks here and no one embedding; FSDP2 preparation asks."""
        return None

    def train(self, mode: bool = True):
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        masked_indices: torch.Tensor,
        masked_weights: torch.Tensor,
        teacher_temperature: float,
    ) -> DINOv2ForPreTrainingOutput:
        r"""
        Args:
            global_crops (`torch.Tensor` of shape `(G, B, C, H, W)`): normalised pixels.
            local_crops (`torch.Tensor` of shape `(L, B, C, h, w)`): normalised pixels; `L` may be 0.
            bool_masked_pos (`torch.BoolTensor` of shape `(G * B, N)`): patches hidden from the student, crop-major.
            masked_indices (`torch.LongTensor` of shape `(M,)`): where that is `True` in the flat `(G * B * N)` grid.
            masked_weights (`torch.Tensor` of shape `(M,)`): one over the masked patches of that crop.
            teacher_temperature (`float`): of the teacher's targets at this step, above 0.
        """
        config = self.config
        dino_targets, ibot_targets, cls_features, patch_features = self.teacher_targets(
            global_crops, masked_indices, teacher_temperature
        )
        local_logits, global_logits, patch_logits, global_cls = self.student_logits(
            global_crops, local_crops, bool_masked_pos, masked_indices
        )
        num_crops, num_images = global_crops.shape[:2]
        temperature = config.student_temperature
        parts, loss = {}, 0.0
        if config.dino_loss_weight > 0:
            parts = image_level_losses(local_logits, global_logits, dino_targets, temperature)
            loss = loss + config.dino_loss_weight * sum(parts.values())
        if config.ibot_loss_weight > 0:
            parts["ibot_loss"] = ibot_loss(
                patch_logits, ibot_targets, masked_weights, num_crops * num_images, temperature
            )
            loss = loss + config.ibot_loss_weight * parts["ibot_loss"]
        if config.koleo_loss_weight > 0:
            parts["koleo_loss"] = sum(koleo_loss(cls_tokens) for cls_tokens in global_cls)
            loss = loss + config.koleo_loss_weight * parts["koleo_loss"]
        return DINOv2ForPreTrainingOutput(
            loss=loss,
            **parts,
            target_entropy=entropy(dino_targets),
            mean_target=dino_targets.flatten(0, 1).mean(dim=0),
            cls_features=cls_features,
            patch_features=patch_features,
        )

    @torch.no_grad()
    def teacher_targets(
        self, global_crops: torch.Tensor, masked_indices: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        What the student should predict: `(G, B, K)` for CLS tokens and `(M, K)` for the patches masked in the
        student. The teacher sees global crops only, unmasked. Then, of the first crop of each image, its CLS feature
        and that of the patch in the middle, both `(B, D)`.
        """
        tokens = self.teacher.backbone(global_crops.flatten(0, 1)).last_hidden_state
        cls_logits, patch_logits = self.teacher.project(tokens[:, 0], self._masked_patches(tokens, masked_indices))
        dino_targets = self.dino_centering(cls_logits.unflatten(0, global_crops.shape[:2]), temperature)
        ibot_targets = self.ibot_centering(patch_logits, temperature)
        rows, columns = (side // self.config.backbone_config.patch_size for side in global_crops.shape[-2:])
        middle = tokens.shape[1] - rows * columns + rows // 2 * columns + columns // 2
        cls_features, patch_features = tokens[: global_crops.shape[1], [0, middle]].unbind(dim=1)
        return dino_targets, ibot_targets, cls_features, patch_features

    def student_logits(
        self,
        global_crops: torch.Tensor,
        local_crops: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        masked_indices: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        The student's view of all crops: logits of local crops `(L, B, K)`, of masked global crops
        `(G, B, K)` and of masked patches `(M, K)`, and the CLS features of the global crops `(G, B, D)`.
        """
        crops, masks = [global_crops.flatten(0, 1)], [bool_masked_pos]
        if len(local_crops):
            crops, masks = [*crops, local_crops.flatten(0, 1)], [*masks, None]
        tokens = self.student.backbone.forward_crops(crops, masks)
        cls_tokens = torch.cat([group[:, 0] for group in tokens])
        cls_logits, patch_logits = self.student.project(cls_tokens, self._masked_patches(tokens[0], masked_indices))
        num_global = len(crops[0])
        global_logits = cls_logits[:num_global].unflatten(0, global_crops.shape[:2])
        local_logits = cls_logits[num_global:].unflatten(0, local_crops.shape[:2])
        global_cls = cls_tokens[:num_global].unflatten(0, global_crops.shape[:2])
        return local_logits, global_logits, patch_logits, global_cls

    def _masked_patches(self, tokens: torch.Tensor, masked_indices: torch.Tensor) -> torch.Tensor:
        """Tokens of global crops `(G * B, T, D)` to those of the masked patches `(M, D)`."""
        num_prefix_tokens = 1 + self.config.backbone_config.num_register_tokens
        return tokens[:, num_prefix_tokens:].flatten(0, 1)[masked_indices]


@torch.no_grad()
def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of distributions `(..., K)`."""
    return torch.special.entr(probabilities).sum(dim=-1).mean()
