"""
The losses of DINOv2 (paper, section 4). Sums and exponentials are float32 whatever the inputs are.

Shapes: `S` student crops, `B` images, `M` patches in the loss, `K` prototypes, `D` hidden size.
"""

import math
from dataclasses import replace

import torch

from .cross_entropy import RowTargets, weighted_cross_entropy
from .logit_chunks import LogitChunks


def dino_loss(
    student: LogitChunks, teacher_targets: torch.Tensor, student_temperature: float, *, same_crops: bool = False
) -> torch.Tensor:
    """
    Image-level loss: cross-entropy summed over pairs of (student crop, teacher crop), averaged over images.

    Args:
        student: logits of `S * B` rows, crop after crop.
        teacher_targets: `(2, B, K)` probabilities of the two global crops.
        student_temperature: above 0.
        same_crops: the student's crops are the two crops of the teacher; each is then only compared with the other
            one.
    """
    num_images = teacher_targets.shape[1]
    weights = student.bottleneck.new_full((len(student),), 1 / num_images, dtype=torch.float32)
    if same_crops:
        others = teacher_targets.flip(0).flatten(0, 1)
        # `torch.compile` cannot trace a bound method of a tensor.
        return weighted_cross_entropy(student, lambda rows: others[rows], weights, student_temperature)
    # The cross-entropies with two targets sum to twice the cross-entropy with their mean, which all crops of a chunk
    # share.
    mean, crops_at_once = teacher_targets.mean(dim=0), max(student.chunk_size // num_images, 1)

    def targets(rows: slice) -> torch.Tensor:
        return mean.repeat((min(rows.stop, len(student)) - rows.start) // num_images, 1)

    whole_crops = replace(student, chunk_size=crops_at_once * num_images)
    return 2 * weighted_cross_entropy(whole_crops, targets, weights, student_temperature)


def image_level_losses(
    local: LogitChunks, global_: LogitChunks, teacher_targets: torch.Tensor, student_temperature: float
) -> dict[str, torch.Tensor]:
    """
    `dino_local_loss` (if there are local crops) and `dino_global_loss`: each is a sum over its pairs of crops, divided
    by the number of all pairs, `2 L + 2`.

    Args:
        local: logits of the student's `L * B` local crops; `L` may be 0.
        global_: logits of its `2 * B` global crops.
        teacher_targets, student_temperature: as in `dino_loss`.
    """
    num_global, num_local = (len(logits) // teacher_targets.shape[1] for logits in (global_, local))
    num_pairs = num_global * num_local + num_global * (num_global - 1)
    losses = {}
    if num_local:
        losses["dino_local_loss"] = dino_loss(local, teacher_targets, student_temperature) / num_pairs
    losses["dino_global_loss"] = dino_loss(global_, teacher_targets, student_temperature, same_crops=True) / num_pairs
    return losses


def ibot_loss(
    student: LogitChunks,
    targets: RowTargets,
    row_weights: torch.Tensor,
    num_crops: int,
    student_temperature: float,
) -> torch.Tensor:
    """
    Patch-level loss: cross-entropy averaged over the counted patches of a crop, then summed over crops and divided by
    the number of all crops.

    Args:
        student: logits of the `M` patches.
        targets: the teacher's targets `(rows, K)` for some of these rows.
        row_weights: `(M,)`; one over the number of counted patches of that crop.
        num_crops: all global crops of the batch.
        student_temperature: above 0.
    """
    return weighted_cross_entropy(student, targets, row_weights, student_temperature) / num_crops


def koleo_loss(features: torch.Tensor, num_neighbors: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """
    Kozachenko-Leonenko regulariser: minus the mean log distance of L2-normalised features to the nearest neighbours
    in their group; the gradient flows to both.

    Args:
        features: `(n, D)` CLS tokens of one global crop, or `(groups, n, D)`.
        num_neighbors: neighbours of each image, fewer than `n`.

    Raises:
        `ValueError`: there are too few images for this number of neighbours.
    """
    if features.shape[-2] <= num_neighbors:
        raise ValueError(
            f"`features` has {features.shape[-2]} image(s); KoLeo needs at least {num_neighbors + 1}: raise the"
            " batch size, or set `koleo_loss_weight` to 0."
        )
    with torch.autocast(features.device.type, enabled=False):
        features = torch.nn.functional.normalize(features.float(), dim=-1, eps=eps)
        with torch.no_grad():
            similarity = features @ features.mT
            similarity.diagonal(dim1=-2, dim2=-1).fill_(-1)
            neighbors = similarity.topk(num_neighbors, dim=-1).indices
            if features.dim() > 2:  # from indices in a group to indices in all
                num_groups, size = features.shape[:2]
                neighbors += torch.arange(0, num_groups * size, size, device=features.device)[:, None, None]
            neighbors = neighbors.flatten(0, -2)
        features = features.flatten(0, -2)
        # eps inside the norm keeps its gradient finite for two equal images, where the distance is 0.
        distances = torch.linalg.vector_norm(features[:, None] - features[neighbors] + eps, dim=-1)
        return -torch.log(distances + eps).mean()


def kde_loss(features: torch.Tensor, concentration: float) -> torch.Tensor:
    """
    The mean log density of L2-normalised features `z`, estimated by a von Mises-Fisher kernel over their group (Wang
    and Isola 2020, section 4.1; used instead of KoLeo in Virchow2, Zimmermann et al. 2024). Unlike KoLeo it uses all
    images of the group, and stays finite if two are equal:

    `mean_i log(mean_j exp(concentration * (z_i . z_j)))`

    Args:
        features: `(n, D)` CLS tokens of one global crop, or `(groups, n, D)`.
        concentration: concentration of the kernel, above 0. With a larger value, only closer images repel each other.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = torch.nn.functional.normalize(features.float(), dim=-1)
        densities = torch.logsumexp(concentration * (features @ features.mT), dim=-1)
        return densities.mean() - math.log(features.shape[-2])
