"""
Statistics that show a collapse: they tell whether features differ between images.

Shapes: `n` features (rows), `D` their size, `K` prototypes. Everything is computed in float32.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def effective_rank(features: Tensor) -> Tensor:
    """
    RankMe (Garrido et al. 2023): `exp(H(p))`, where `p` are the singular values of the features over their sum.

    Features are not centred, so a direction that all of them share counts as one. With few features the rank is
    limited by their number: compare values of equal `n` only.

    Args:
        features: `(n, D)`, finite, `n` at least 1.

    Returns:
        Scalar in [1, min(n, D)]; 1 when all features are multiples of one.
    """
    singular_values = torch.linalg.svdvals(features.float())
    shares = singular_values / singular_values.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


@torch.no_grad()
def mean_pair_cosine(features: Tensor) -> Tensor:
    """
    Mean cosine similarity over all pairs of two different features, without making the pairs.

    The square of the sum of `n` unit vectors contains every pair twice and each vector with itself once.

    Args:
        features: `(n, D)`, finite, `n` at least 2.

    Returns:
        Scalar in [-1 / (n - 1), 1]; 1 when all features point the same way.
    """
    directions = F.normalize(features.float(), dim=-1)
    num_features = len(directions)
    squares = directions.square().sum()  # n, minus the number of zero vectors
    return (directions.sum(dim=0).square().sum() - squares) / (num_features * (num_features - 1))


@torch.no_grad()
def entropy_of(distribution: Tensor) -> Tensor:
    """Entropy of a distribution `(K,)` in nats, in [0, ln K]; its exponential is the effective number of outcomes."""
    return torch.special.entr(distribution.float()).sum()
