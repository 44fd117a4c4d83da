"""
One pretraining step of the original, put together from its own modules; ours is measured beside it.

Its `SSLMetaArch` wants FSDP and xformers. Networks, heads and losses here are its own, in its order, and what is left
out are sums over processes. Without xformers its blocks take one resolution at a time, its attention is torch's, and
the loss of patches is the plain form that its code falls back to. AdamW and the average of the weights run as
`foreach` kernels, as there.
"""

from functools import partial

import torch
from peers import original_state
from torch import nn

from dinov2_hf import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments


TEACHER_MOMENTUM, TEACHER_TEMPERATURE = 0.99, 0.07


class OriginalStep:
    """
    The original's student, teacher and optimizer for a recipe with softmax centring and one head, with the weights of
    `model`.

    Args:
        dtype: `"bf16"`: under autocast; `"no"`: in float32.
    """

    def __init__(self, args: PreTrainingArguments, model: DINOv2ForPreTraining, device: torch.device, dtype: str):
        from dinov2.layers import block
        from dinov2.loss import DINOLoss, KoLeoLoss, iBOTPatchLoss

        config: DINOv2PreTrainingConfig = model.config
        if config.centering != "softmax" or config.separate_ibot_head:
            raise ValueError("the original's step is put together for softmax centring and a shared head only.")
        self.config, self.device, self.dtype = config, device, dtype
        self.num_local_crops, self.max_grad_norm = args.num_local_crops, args.max_grad_norm
        self.student = build_network(config, model.student, drop_path_rate=config.backbone_config.drop_path_rate)
        self.teacher = build_network(config, model.teacher).requires_grad_(False)
        self.nested = block.XFORMERS_AVAILABLE
        self.dino_loss, self.ibot_loss = DINOLoss(config.num_prototypes), iBOTPatchLoss(config.num_prototypes)
        self.koleo_loss = KoLeoLoss()
        for module in (self.student, self.teacher, self.dino_loss, self.ibot_loss):
            module.to(device).train()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, weight_decay=0.04, foreach=True)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        self.loss(batch).backward()
        for part in self.student.values():
            nn.utils.clip_grad_norm_(part.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            of_student, of_teacher = list(self.student.parameters()), list(self.teacher.parameters())
            torch._foreach_mul_(of_teacher, TEACHER_MOMENTUM)
            torch._foreach_add_(of_teacher, of_student, alpha=1 - TEACHER_MOMENTUM)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bf16"):
            return self._loss(**batch)

    def _loss(self, global_crops, local_crops, bool_masked_pos, masked_indices, masked_weights) -> torch.Tensor:
        global_crops, local_crops = global_crops.flatten(0, 1), local_crops.flatten(0, 1)
        of_cls, of_patches = self._targets(global_crops, masked_indices)
        backbone, head = self.student["backbone"], self.student["dino_head"]
        if self.nested:
            large, small = backbone([global_crops, local_crops], masks=[bool_masked_pos, None], is_training=True)
        else:
            large = backbone(global_crops, masks=bool_masked_pos, is_training=True)
            small = backbone(local_crops, is_training=True)
        patches = large["x_norm_patchtokens"].flatten(0, 1).index_select(0, masked_indices)
        cls = large["x_norm_clstoken"]
        tokens = [small["x_norm_clstoken"], cls, patches]
        local, of_global, of_masked = head(torch.cat(tokens)).split([len(part) for part in tokens])
        num_terms = 2 + 2 * self.num_local_crops
        loss = self.dino_loss(local.chunk(self.num_local_crops), of_cls) / num_terms
        loss += 2 * self.dino_loss([of_global], [of_cls.flatten(0, 1)]) / num_terms
        loss += self.config.koleo_loss_weight * sum(self.koleo_loss(part) for part in cls.chunk(2))
        return loss + self.ibot_loss.forward_masked(
            of_masked,
            of_patches,
            student_masks_flat=bool_masked_pos,
            n_masked_patches=len(masked_indices),
            masks_weight=masked_weights,
        )

    @torch.no_grad()
    def _targets(self, global_crops, masked_indices) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.teacher["backbone"](global_crops, is_training=True)
        cls = torch.cat(output["x_norm_clstoken"].chunk(2)[::-1])
        patches = output["x_norm_patchtokens"].flatten(0, 1).index_select(0, masked_indices)
        cls, patches = self.teacher["dino_head"](torch.cat([cls, patches])).split([len(cls), len(patches)])
        of_cls = self.dino_loss.softmax_center_teacher(cls, TEACHER_TEMPERATURE).unflatten(0, (2, -1))
        self.dino_loss.update_center(cls)
        of_patches = self.ibot_loss.softmax_center_teacher(patches.unsqueeze(0), TEACHER_TEMPERATURE).squeeze(0)
        self.ibot_loss.update_center(patches.unsqueeze(0))
        return of_cls, of_patches


def build_network(config: DINOv2PreTrainingConfig, ours: nn.Module, drop_path_rate: float = 0.0) -> nn.ModuleDict:
    """The original's backbone and head with the weights of our student or teacher."""
    from dinov2.layers import DINOHead, MemEffAttention, NestedTensorBlock
    from dinov2.models.vision_transformer import DinoVisionTransformer

    fields = config.backbone_config
    backbone = DinoVisionTransformer(
        img_size=fields.image_size,
        patch_size=fields.patch_size,
        embed_dim=fields.hidden_size,
        depth=fields.num_hidden_layers,
        num_heads=fields.num_attention_heads,
        ffn_layer="swiglufused" if fields.use_swiglu_ffn else "mlp",
        block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention),
        init_values=fields.layerscale_value,
        drop_path_rate=drop_path_rate,
        drop_path_uniform=True,
        block_chunks=0,
    )
    backbone.load_state_dict(original_state(ours.backbone.state_dict()))
    head = DINOHead(
        in_dim=fields.hidden_size,
        out_dim=config.num_prototypes,
        hidden_dim=config.head_hidden_size,
        bottleneck_dim=config.bottleneck_size,
    )
    head.load_state_dict(ours.dino_head.state_dict())
    return nn.ModuleDict({"backbone": backbone, "dino_head": head})
