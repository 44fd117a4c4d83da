"""The losses against golden numbers (specification, appendix B) and against the formulas written as loops."""

import math

import pytest
import torch

from dinov2_hf.pretraining.centering import SinkhornKnoppCentering
from dinov2_hf.pretraining.logit_chunks import LogitChunks
from dinov2_hf.pretraining.losses import dino_loss, ibot_loss, kde_loss, koleo_loss


def waves(rows: int, columns: int, a: float, b: float, c: float) -> torch.Tensor:
    i, k = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(columns, dtype=torch.float64)
    return torch.sin(a * i + b * k + c * i * k).float()


def whole(logits: torch.Tensor, chunk_size: int = 100) -> LogitChunks:
    """Logits `(..., K)` as they are: the product of themselves and the identity."""
    return LogitChunks(logits.flatten(0, -2), torch.eye(logits.shape[-1]), chunk_size)


def sinkhorn_targets(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of all rows of logits `(n, K)`."""
    return SinkhornKnoppCentering()(whole(logits), temperature)(slice(None))


def patch_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, num_crops: int) -> torch.Tensor:
    """`ibot_loss`, two rows at a time."""
    return ibot_loss(whole(logits, chunk_size=2), targets.__getitem__, weights, num_crops, 0.1)


def test_golden_dino_loss():
    targets = sinkhorn_targets(waves(6, 7, 0.7, 1.3, 0.11), 0.07)
    expected = [1.4839e-7, 0.5021107, 0.0073197, 1.0453e-11, 1.9757e-12, 5.8975e-6, 0.4905635]
    assert targets[0].tolist() == pytest.approx(expected, rel=2e-4, abs=1e-13)
    targets = targets.view(2, 3, 7)
    local = dino_loss(whole(waves(6, 7, 0.3, 1.7, 0.31)), targets, 0.1) / 6
    global_ = dino_loss(whole(waves(6, 7, 0.5, 0.9, 0.23)), targets, 0.1, same_crops=True) / 6
    assert local.item() == pytest.approx(6.661356, abs=1e-5)
    assert global_.item() == pytest.approx(4.928273, abs=1e-5)


def test_golden_ibot_loss():
    student, teacher = waves(6, 5, 0.4, 1.1, 0.2), waves(6, 5, 0.9, 0.6, 0.15)
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2])
    loss = patch_loss(student, sinkhorn_targets(teacher, 0.07), weights, 4)
    assert loss.item() == pytest.approx(2.521593, abs=1e-5)


def test_golden_koleo_loss():
    assert koleo_loss(waves(5, 6, 0.8, 0.35, 0.27)).item() == pytest.approx(-0.2354021, abs=1e-5)


def test_dino_loss_equals_loops():
    student, targets = torch.randn(3, 4, 9), torch.softmax(torch.randn(2, 4, 9), -1)

    def pair(s: int, t: int, logits: torch.Tensor) -> float:
        total = 0.0
        for image in range(4):
            log_probabilities = torch.log_softmax(logits[s, image].double() / 0.1, -1)
            total -= (targets[t, image].double() * log_probabilities).sum().item() / 4
        return total

    all_pairs = sum(pair(s, t, student) for s in range(3) for t in range(2))
    assert dino_loss(whole(student), targets, 0.1).item() == pytest.approx(all_pairs, rel=1e-6)
    other_crop = pair(0, 1, student[:2]) + pair(1, 0, student[:2])
    assert dino_loss(whole(student[:2]), targets, 0.1, same_crops=True).item() == pytest.approx(other_crop, rel=1e-6)


def test_uniform_logits_cost_log_k():
    uniform = torch.full((2, 3, 8), 1 / 8)
    assert dino_loss(whole(torch.zeros(2, 3, 8)), uniform, 0.1).item() == pytest.approx(4 * math.log(8), rel=1e-6)


def test_ibot_loss_equals_loops_over_images():
    masks = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    student, targets = torch.randn(4, 6), torch.softmax(torch.randn(4, 6), -1)
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0])
    row, expected = 0, 0.0
    for mask in masks:
        costs = []
        for _ in range(int(mask.sum())):
            costs.append(-(targets[row] * torch.log_softmax(student[row] / 0.1, -1)).sum().item())
            row += 1
        expected += sum(costs) / len(costs) / 3 if costs else 0.0
    assert patch_loss(student, targets, weights, 3).item() == pytest.approx(expected, rel=1e-5)


def test_no_masked_patch_costs_nothing():
    empty = torch.zeros(0, 6, requires_grad=True)
    loss = patch_loss(empty, torch.zeros(0, 6), torch.zeros(0), 4)
    loss.backward()
    assert loss.item() == 0


def test_koleo_equals_loops():
    features = torch.randn(6, 5)
    unit = [row / row.norm() for row in features]
    total = 0.0
    for i in range(6):
        neighbour = max((j for j in range(6) if j != i), key=lambda j: float(unit[i] @ unit[j]))
        total -= math.log((unit[i] - unit[neighbour]).norm().item()) / 6
    assert koleo_loss(features).item() == pytest.approx(total, rel=1e-5)


def test_koleo_of_groups_and_more_neighbors_equals_loops():
    features = torch.randn(2, 5, 4)
    total = 0.0
    for group in torch.nn.functional.normalize(features, dim=-1):
        for i in range(5):
            distances = sorted((group[i] - group[j]).norm().item() for j in range(5) if j != i)
            total -= sum(math.log(distance) for distance in distances[:2]) / (2 * 5 * 2)
    assert koleo_loss(features, num_neighbors=2).item() == pytest.approx(total, rel=1e-5)


def test_kde_equals_loops():
    features = torch.randn(2, 4, 3)
    total = 0.0
    for group in torch.nn.functional.normalize(features, dim=-1):
        for i in range(4):
            kernels = [math.exp(5 * float(group[i] @ group[j])) for j in range(4)]
            total += math.log(sum(kernels) / 4) / 8
    assert kde_loss(features, concentration=5.0).item() == pytest.approx(total, rel=1e-5)


def test_kde_is_largest_for_equal_images_and_finite_there():
    twins = torch.ones(4, 8, requires_grad=True)
    loss = kde_loss(twins, concentration=5.0)
    loss.backward()
    assert loss.item() == pytest.approx(5.0, rel=1e-6)
    assert torch.isfinite(twins.grad).all()


def test_koleo_of_twins_is_finite_in_half_precision():
    features = torch.randn(4, 8, dtype=torch.float16).repeat(2, 1).requires_grad_()
    loss = koleo_loss(features)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()


def test_koleo_of_one_image_is_refused():
    with pytest.raises(ValueError, match=r"has 1 image\(s\); KoLeo needs at least 2"):
        koleo_loss(torch.randn(1, 8))


def test_losses_stay_in_float32_under_autocast():
    student, targets = torch.randn(2, 3, 64), torch.softmax(torch.randn(2, 3, 64), -1)
    expected = dino_loss(whole(student), targets, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dino_loss(whole(student), targets, 0.1), expected)
        assert torch.equal(koleo_loss(student[0]), koleo_loss(student[0].clone()))
