"""
The losses of DINOv2 (paper, section 4). Sums and exponentials are float32 whatever the inputs are.

Shapes: `S` student crops, `B` images, `M` patches that count, `K` prototypes, `D` hidden size.
"""

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
        same_crops: the student's crops are the teacher's two; a crop is then compared with the other one only.
    """
    num_images = teacher_targets.shape[1]
    weights = student.bottleneck.new_full((len(student),), 1 / num_images, dtype=torch.float32)
    if same_crops:
        others = teacher_targets.flip(0).flatten(0, 1)
        return weighted_cross_entropy(student, others.__getitem__, weights, student_temperature)
    # The cross-entropies with two targets are twice that with their mean, which all crops of a chunk share.
    mean, crops_at_once = teacher_targets.mean(dim=0), max(student.chunk_size // num_images, 1)

    def targets(rows: slice) -> torch.Tensor:
        return mean.repeat((min(rows.stop, len(student)) - rows.start) // num_images, 1)

    whole_crops = replace(student, chunk_size=crops_at_once * num_images)
    return 2 * weighted_cross_entropy(whole_crops, targets, weights, student_temperature)


def image_level_losses(
    local: LogitChunks, global_: LogitChunks, teacher_targets: torch.Tensor, student_temperature: float
) -> dict[str, torch.Tensor]:
    """
    `dino_local_loss` (where there are local crops) and `dino_global_loss`: each a sum over its pairs of crops, divided
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
    Patch-level loss: cross-entropy averaged over the patches of a crop that count, then summed over crops and divided
    by the number of all crops.

    Args:
        student: logits of the `M` patches.
        targets: the teacher's targets `(rows, K)` for some of these rows.
        row_weights: `(M,)`; one over the patches that count of that crop.
        num_crops: all global crops of the batch.
        student_temperature: above 0.
    """
    return weighted_cross_entropy(student, targets, row_weights, student_temperature) / num_crops


def koleo_loss(features: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """
    Kozachenko-Leonenko regulariser: minus the mean log distance of L2-normalised features to their nearest neighbour
    in this batch; the gradient flows to both.

    Args:
        features: `(B, D)` CLS tokens of one global crop, `B` at least 2.

    Raises:
        `ValueError`: for a single image, which has no neighbour.
    """
    if len(features) < 2:
        raise ValueError(
            f"`features` holds {len(features)} image; KoLeo needs at least 2 per device: raise the batch size, or set"
            " `koleo_loss_weight` to 0."
        )
    with torch.autocast(features.device.type, enabled=False):
        features = torch.nn.functional.normalize(features.float(), dim=-1, eps=eps)
        with torch.no_grad():
            similarity = features @ features.T
            similarity.fill_diagonal_(-1)
            neighbours = similarity.argmax(dim=1)
        # eps inside the norm keeps its gradient finite for two equal images, where the distance is 0.
        distances = torch.linalg.vector_norm(features - features[neighbours] + eps, dim=-1)
        return -torch.log(distances + eps).mean()
