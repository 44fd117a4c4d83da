"""
The image-level losses of DINOv2 (paper, section 4), in float32 whatever the inputs are. The patch-level one is in
`logit_chunks.py`, since its logits are too many to be held at once.

Shapes: `S` student crops, `T` teacher crops, `B` images, `K` prototypes, `D` hidden size.
"""

import torch


def cross_entropy(student_logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    `-sum_k targets_k * log_softmax(student_logits / temperature)_k`, row by row.

    `targets` need not sum to 1, so the cross-entropies of one student crop with several teacher crops are one with the
    sum of their targets. No gradient flows to `targets`.

    Args:
        student_logits: `(..., K)`.
        targets: the same, or with dimensions of 1, which all student crops share.

    Returns:
        `(...)`.
    """
    return _CrossEntropy.apply(student_logits, targets, temperature)


class _CrossEntropy(torch.autograd.Function):
    """
    Its gradient, `(sum(targets) * softmax - targets) / temperature`, is made at once, in one buffer, and kept in the
    dtype of the logits; autograd would keep each row of 65,536 prototypes twice and rewrite it four times more.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
        log_probabilities = (logits.float() / temperature).log_softmax(dim=-1)
        agreement = torch.einsum("...k,...k->...", log_probabilities, targets)
        if ctx.needs_input_grad[0]:
            gradient = log_probabilities.exp_().mul_(targets.sum(dim=-1, keepdim=True)).sub_(targets)
            ctx.save_for_backward(gradient.to(logits.dtype))
            ctx.temperature = temperature
        return -agreement

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (grad_output / ctx.temperature).unsqueeze(-1)).to(gradient.dtype), None, None


def dino_loss(
    student_logits: torch.Tensor,
    teacher_targets: torch.Tensor,
    student_temperature: float,
    *,
    same_crops: bool = False,
) -> torch.Tensor:
    """
    Image-level loss: cross-entropy summed over pairs of (student crop, teacher crop), averaged over images.

    Args:
        student_logits: `(S, B, K)`.
        teacher_targets: `(2, B, K)` probabilities of the two global crops.
        student_temperature: above 0.
        same_crops: the student's crops are the teacher's two; a crop is then compared with the other one only.
    """
    targets = teacher_targets.flip(0) if same_crops else teacher_targets.sum(0, keepdim=True)
    with torch.autocast(student_logits.device.type, enabled=False):
        losses = cross_entropy(student_logits, targets, student_temperature)
    return losses.sum() / student_logits.shape[1]


def image_level_losses(
    local_logits: torch.Tensor, global_logits: torch.Tensor, teacher_targets: torch.Tensor, student_temperature: float
) -> dict[str, torch.Tensor]:
    """
    `dino_local_loss` (where there are local crops) and `dino_global_loss`: each a sum over its pairs of crops, divided
    by the number of all pairs, `2 L + 2`.

    Args:
        local_logits: `(L, B, K)`; `L` may be 0.
        global_logits: `(2, B, K)`.
        teacher_targets, student_temperature: as in `dino_loss`.
    """
    num_global, num_local = len(global_logits), len(local_logits)
    num_pairs = num_global * num_local + num_global * (num_global - 1)
    losses = {}
    if num_local:
        losses["dino_local_loss"] = dino_loss(local_logits, teacher_targets, student_temperature) / num_pairs
    losses["dino_global_loss"] = (
        dino_loss(global_logits, teacher_targets, student_temperature, same_crops=True) / num_pairs
    )
    return losses


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
