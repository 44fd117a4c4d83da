"""Effective rank, pair cosine and entropy: known answers, and loops as a second way."""

import math

import numpy as np
import pytest
import torch

from dinov2_hf.training.monitoring.feature_statistics import effective_rank, entropy_of, mean_pair_cosine


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (7, 7)])
def test_effective_rank_equals_its_definition(shape):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    sigma = np.sqrt(np.linalg.eigvalsh(features.double().numpy().T @ features.double().numpy()).clip(0))
    p = [value / sigma.sum() for value in sigma if value > 1e-6]
    assert effective_rank(features).item() == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-4)


def test_effective_rank_of_known_features():
    orthonormal = torch.linalg.qr(torch.randn(32, 32)).Q
    assert effective_rank(orthonormal[:10]).item() == pytest.approx(10, rel=1e-4)
    assert effective_rank(orthonormal[:10] * 1e-3).item() == pytest.approx(10, rel=1e-4)
    assert effective_rank(torch.cat([orthonormal[:3]] * 5)).item() == pytest.approx(3, rel=1e-4)
    one = torch.randn(1, 32)
    assert effective_rank(one.expand(500, 32)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(one * torch.randn(500, 1)).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(5, 4)).item() == 1


def test_mean_pair_cosine_equals_a_loop_over_pairs():
    features = torch.randn(17, 6, generator=torch.Generator().manual_seed(0)) + 0.3
    cosines = [
        torch.nn.functional.cosine_similarity(features[i], features[j], dim=0).item()
        for i in range(17) for j in range(17) if i != j
    ]  # fmt: skip
    assert mean_pair_cosine(features).item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_mean_pair_cosine_of_known_features():
    assert mean_pair_cosine(torch.eye(6)).item() == pytest.approx(0, abs=1e-6)
    assert mean_pair_cosine(torch.randn(1, 9).expand(300, 9)).item() == pytest.approx(1, abs=1e-5)
    assert mean_pair_cosine(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])).item() == pytest.approx(-1)


def test_features_in_bfloat16():
    """Half precision costs digits, not the verdict: what is the same stays the same, what differs stays different."""
    features = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    for statistic in (effective_rank, mean_pair_cosine):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = statistic(features.bfloat16())
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(statistic(features).item(), rel=1e-3, abs=1e-3)
    same = features[:1].expand(256, 64).bfloat16()
    assert effective_rank(same).item() == pytest.approx(1, abs=1e-3)
    assert mean_pair_cosine(same).item() == pytest.approx(1, abs=1e-5)


def test_entropy_of_known_distributions():
    assert entropy_of(torch.full((4096,), 1 / 4096)).exp().item() == pytest.approx(4096, rel=1e-4)
    assert entropy_of(torch.tensor([0.0, 1.0, 0.0])).item() == 0
    assert entropy_of(torch.tensor([0.5, 0.0, 0.5])).exp().item() == pytest.approx(2)
