"""
Floating-point operations of a forward and backward pass of an objective: those of the matrix products of its networks,
each counted once, without recomputation that saves memory. A product of `(n, k)` and `(k, m)` is `2 n k m`.

Backbones and heads of students, teacher and Gram teacher are counted, on the crops that stochastic depth keeps. Norms
and products inside losses are not counted. Weights that are not trained have no gradient.

Shapes: `t` tokens of an image, `D` hidden size.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ..models import DINOv2Model
from ..models.crop_packing import num_kept
from .frozen_teacher import FrozenTeacher
from .heads import BackboneWithHeads, ProjectionHead
from .teachers import EmaTeacher
from .terms import needs_of


class StepFlops:
    """
    Of one device.

    Args:
        module: an `Objective`.

    Attributes:
        is_known: whether the products of all networks are known here. Otherwise nothing can be counted.
    """

    def __init__(self, module: nn.Module):
        self.module, self.teacher = module, module.teacher_role
        networks = [student.backbone for student in module.students.values()]
        if self.gram_teacher is not None:
            networks.append(self.gram_teacher.backbone)
        self.is_known = type(self.teacher) in (EmaTeacher, FrozenTeacher)
        if self.is_known:
            networks.append(self.teacher.network if self._is_bare else self.teacher.network.backbone)
        self.is_known &= all(isinstance(network, DINOv2Model) for network in networks)

    @property
    def gram_teacher(self) -> FrozenTeacher | None:
        """The present Gram teacher. A run may replace it."""
        return self.module._gram_teacher[0]

    @property
    def _is_bare(self) -> bool:
        return not isinstance(self.teacher.network, BackboneWithHeads)

    def of_pass(self, batch: Mapping[str, torch.Tensor], loss_weights: Mapping[str, float]) -> int | torch.Tensor:
        """
        The operations of one forward and backward pass of all students, from shapes alone.

        Args:
            batch: as the objective takes it.
            loss_weights: weights of further terms, beyond those of the configuration, as `forward` takes them.

        Returns:
            A number, or a scalar on the device if the batch has padded masked patches.
        """
        weights = {**self.module.loss_weights, **loss_weights}
        needs = needs_of({name: weight for name, weight in weights.items() if weight})
        sizes = [(crops.shape[0] * crops.shape[1], crops.shape[-2:]) for crops in _resolutions(batch)]
        (num_global, global_size), num_crops = sizes[0], sum(count for count, _ in sizes)
        num_masked = batch.get("num_masked", len(batch["masked_indices"]))
        distillation, total = self.module.distillation_config, 0
        for student in self.module.students.values():
            total += sum(backbone_flops(student.backbone, count, size, is_trained=True) for count, size in sizes)
            patches = num_global * num_patches(student.backbone, global_size)
            if distillation is not None and distillation.ibot_tokens == "all":
                num_masked = patches
            if isinstance(student, BackboneWithHeads):
                rows = num_crops if "cls" in needs else 0
                total += heads_flops(student, rows, num_masked if "patches" in needs else 0, is_trained=True)
            else:
                for projector, rows in ((student.cls_projector, num_global), (student.patch_projector, patches)):
                    total += 0 if projector is None else rows * _linear_flops(projector, is_trained=True)
        return total + self._of_teachers(num_global, global_size, num_masked if "patches" in needs else 0)

    def _of_teachers(self, num_global: int, size: tuple[int, int], num_patch_rows: int | torch.Tensor):
        network, total = self.teacher.network, 0
        if self.gram_teacher is not None:
            total += backbone_flops(self.gram_teacher.backbone, num_global, size, is_trained=False)
        side = getattr(self.teacher, "image_size", None)
        size = size if side is None else (side, side)
        if self._is_bare:
            return total + backbone_flops(network, num_global, size, is_trained=False)
        total += backbone_flops(network.backbone, num_global, size, is_trained=False)
        return total + heads_flops(network, num_global, num_patch_rows, is_trained=False)


def num_patches(backbone: DINOv2Model, size: tuple[int, int]) -> int:
    """The number of patches of an image of this height and width."""
    side = backbone.config.patch_size
    return (size[0] // side) * (size[1] // side)


def backbone_flops(backbone: DINOv2Model, num_images: int, size: tuple[int, int], *, is_trained: bool) -> int:
    """
    The operations for images of one size, of the forward pass and, if it `is_trained`, of the backward pass.

    A product `x @ weight` has two gradients: of `x` if something before it is trained, and of the weight if that is
    trained. Attention is two products, `4 t^2 D`, with two gradients each.
    """
    config, patches = backbone.config, num_patches(backbone, size)
    tokens = 1 + config.num_register_tokens + patches
    projection = backbone.embeddings.patch_embeddings.projection
    trained = is_trained and _is_trained(projection)
    per_patch = 2 * config.num_channels * config.patch_size**2 * config.hidden_size
    total = num_images * patches * per_patch * (1 + trained)  # pixels have no gradient
    is_below_trained = is_trained and _is_trained(backbone.embeddings)
    for layer in backbone.encoder.layer:
        kept = num_images
        if is_trained and layer.drop_path_rate > 0:
            kept = num_kept(num_images, layer.drop_path_rate)
        is_below_trained |= is_trained and _is_trained(layer.norm1)
        linear = tokens * _linear_flops(layer, is_trained=is_trained, is_below_trained=is_below_trained)
        is_below_trained |= is_trained and _is_trained(layer)
        attention = 4 * tokens**2 * config.hidden_size * (3 if is_below_trained else 1)
        total += kept * (linear + attention)
    return total


def heads_flops(
    network: BackboneWithHeads, num_cls: int, num_patches: int | torch.Tensor, *, is_trained: bool
) -> int | torch.Tensor:
    """The operations of the heads on these numbers of CLS tokens and patches."""
    patch_head = network.dino_head if network.ibot_head is None else network.ibot_head
    of_cls, of_patch = (_head_flops(head, is_trained=is_trained) for head in (network.dino_head, patch_head))
    return num_cls * of_cls + num_patches * of_patch


def _head_flops(head: ProjectionHead, *, is_trained: bool) -> int:
    """The operations for one token; logits are counted once."""
    prototypes = head.last_layer.weight_v
    logits = 2 * getattr(prototypes, "ds_numel", prototypes.numel())  # under ZeRO-3, each rank has only a part
    return _linear_flops(head.mlp, is_trained=is_trained) + logits * (3 if is_trained else 1)


def _linear_flops(module: nn.Module, *, is_trained: bool, is_below_trained: bool = True) -> int:
    """The operations of all linear layers of a module for one token."""
    total = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            gradients = is_below_trained + layer.weight.requires_grad if is_trained else 0
            total += 2 * layer.in_features * layer.out_features * (1 + gradients)
    return total


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _resolutions(batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The crops of each size in the batch."""
    return [batch[name] for name in ("global_crops", "local_crops") if len(batch[name])]
