"""Logits that are made in chunks give the targets, losses and gradients of logits that are held at once."""

import pytest
import torch
from torch import nn

from dinov2_hf.pretraining.centering import NoCentering, SinkhornKnoppCentering, SoftmaxCentering, sinkhorn_knopp
from dinov2_hf.pretraining.cross_entropy import weighted_cross_entropy
from dinov2_hf.pretraining.heads import ProjectionHead
from dinov2_hf.pretraining.logit_chunks import LogitChunks
from dinov2_hf.pretraining.losses import ibot_loss


ROWS, BOTTLENECK, PROTOTYPES = 37, 6, 11


def factors(chunk_size: int, seed: int = 0, scale: float = 1.0) -> LogitChunks:
    generator = torch.Generator().manual_seed(seed)
    rows = nn.functional.normalize(torch.randn(ROWS, BOTTLENECK, generator=generator), dim=-1)
    prototypes = scale * nn.functional.normalize(torch.randn(PROTOTYPES, BOTTLENECK, generator=generator), dim=-1)
    return LogitChunks(rows, prototypes, chunk_size)


def spec_sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Spec section 5.1 as it is written there, in float64."""
    matrix = torch.exp(logits.double() / temperature).T
    matrix = matrix / matrix.sum()
    num_prototypes, num_rows = matrix.shape
    for _ in range(3):
        matrix = matrix / (matrix.sum(dim=1, keepdim=True) * num_prototypes)
        matrix = matrix / (matrix.sum(dim=0, keepdim=True) * num_rows)
    return (num_rows * matrix).T


@pytest.mark.parametrize("chunk_size", [1, 5, 36, 37, 100])
def test_sinkhorn_over_chunks_is_that_over_all_rows(chunk_size):
    logits = factors(chunk_size)
    targets = SinkhornKnoppCentering()(logits, 0.07)
    in_chunks = torch.cat([targets(rows) for rows in logits.chunks()])
    whole = logits.rows(slice(None))
    torch.testing.assert_close(in_chunks, spec_sinkhorn(whole, 0.07).float(), rtol=1e-4, atol=1e-6)


def test_sinkhorn_over_chunks_does_not_overflow():
    """Logits of up to 40 at a temperature of 0.04, whose exponential has no float."""
    logits = factors(5, scale=40.0)
    assert sinkhorn_knopp(logits, 0.04).isfinite().all()
    targets = SinkhornKnoppCentering()(logits, 0.04)
    in_chunks = torch.cat([targets(rows) for rows in logits.chunks()])
    scores = logits.rows(slice(None)).double() / 0.04
    for _ in range(3):
        scores = scores - scores.logsumexp(dim=0)
        scores = scores - scores.logsumexp(dim=1, keepdim=True)
    torch.testing.assert_close(in_chunks, scores.exp().float(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(in_chunks.sum(dim=1), torch.ones(ROWS))


@pytest.mark.parametrize("chunk_size", [5, 100])
def test_softmax_over_chunks_has_the_same_targets_and_centre(chunk_size):
    logits = factors(chunk_size)
    chunked, whole = SoftmaxCentering(PROTOTYPES, 0.9), torch.zeros(PROTOTYPES)
    for _ in range(3):  # the first centre is 0
        targets = chunked(logits, 0.07)
        wanted = torch.softmax((logits.rows(slice(None)) - whole) / 0.07, dim=-1)
        whole = 0.9 * whole + 0.1 * logits.rows(slice(None)).mean(dim=0)
        torch.testing.assert_close(torch.cat([targets(rows) for rows in logits.chunks()]), wanted)
        torch.testing.assert_close(chunked.center, whole)
    assert chunked.center.abs().max() > 0.01
    chunked.eval()
    before = chunked.center.clone()
    chunked(logits, 0.07)
    assert torch.equal(before, chunked.center)


def test_without_centering_a_row_is_its_softmax():
    logits = factors(5)
    targets = NoCentering()(logits, 0.07)
    expected = torch.softmax(logits.rows(slice(5, 10)) / 0.07, dim=-1)
    torch.testing.assert_close(targets(slice(5, 10)), expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 8, 100])
def test_the_loss_and_its_gradients_are_those_of_whole_logits(chunk_size):
    student = factors(chunk_size, seed=1)
    targets = spec_sinkhorn(factors(chunk_size).rows(slice(None)), 0.07).float()
    weights = torch.rand(ROWS)
    results = []
    for chunked in (True, False):
        rows, prototypes = (value.clone().requires_grad_() for value in (student.bottleneck, student.prototypes))
        if chunked:
            loss = ibot_loss(LogitChunks(rows, prototypes, chunk_size), targets.__getitem__, weights, 4, 0.1)
        else:
            log_probabilities = torch.log_softmax(rows @ prototypes.T / 0.1, dim=-1)
            loss = -((targets * log_probabilities).sum(dim=-1) * weights).sum() / 4
        (3 * loss).backward()
        results.append((loss.detach(), rows.grad, prototypes.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    student, generator = factors(8, seed=1), torch.Generator().manual_seed(2)
    targets = torch.softmax(torch.randn(ROWS, PROTOTYPES, generator=generator), dim=-1)
    weights = torch.rand(ROWS, generator=generator)
    rows = student.bottleneck.clone().requires_grad_()
    ibot_loss(LogitChunks(rows, student.prototypes, 8), targets.__getitem__, weights, 4, 0.1).backward()

    def loss(moved: torch.Tensor) -> float:
        scores = moved @ student.prototypes.double().T / 0.1
        losses = -(targets * torch.log_softmax(scores, dim=-1)).sum(dim=-1)
        return ((losses * weights).sum() / 4).item()

    for row, column in ((0, 0), (17, 3), (36, 5)):
        step = torch.zeros(ROWS, BOTTLENECK, dtype=torch.float64)
        step[row, column] = 1e-5
        slope = (loss(student.bottleneck + step) - loss(student.bottleneck - step)) / 2e-5
        assert rows.grad[row, column].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_a_head_gives_the_factors_of_its_logits():
    head = ProjectionHead(8, PROTOTYPES, head_hidden_size=16, bottleneck_size=BOTTLENECK, num_layers=3)
    tokens = torch.randn(4, 8)
    rows, prototypes = head(tokens, factored=True)
    torch.testing.assert_close(rows @ prototypes.T, head(tokens))


def test_a_bias_is_added_to_more_than_half_precision():
    logits, bias = factors(8), 30 * torch.randn(PROTOTYPES, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(logits.plus(bias).rows(slice(4)), logits.rows(slice(4)) + bias)
    nothing = torch.zeros(1, BOTTLENECK, dtype=torch.bfloat16)
    half = LogitChunks(nothing, torch.zeros(PROTOTYPES, BOTTLENECK, dtype=torch.bfloat16), 8).plus(bias)
    columns = half.prototypes[:, BOTTLENECK:].float() @ half.bottleneck[0, BOTTLENECK:].float()
    torch.testing.assert_close(columns, bias, rtol=2**-16, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_little_more_than_its_logits(dtype):
    """Beside float64 from the same rounded factors; float32 probabilities of rounded logits are what it may lose."""
    generator = torch.Generator().manual_seed(5)
    rows, prototypes = torch.randn(32, 64, generator=generator), torch.randn(4096, 64, generator=generator)
    rows, prototypes = (nn.functional.normalize(value, dim=-1).to(dtype) for value in (rows, prototypes))
    teacher = torch.softmax(rows.double() @ prototypes.double().T / 0.06, dim=-1)
    scores = rows.double() @ prototypes.double().T / 0.1
    true_loss = -(teacher * scores.log_softmax(dim=-1)).sum() / 32
    true_gradient = (scores.softmax(dim=-1) - teacher) @ prototypes.double() / 0.1 / 32
    rounded = scores.to(dtype).float()
    target = teacher.float().to(dtype) if dtype == torch.bfloat16 else teacher.float()
    usual = ((rounded.softmax(dim=-1) - teacher.float()).to(dtype) @ prototypes).double() / 0.1 / 32

    leaf = rows.clone().requires_grad_()
    loss = weighted_cross_entropy(LogitChunks(leaf, prototypes, 8), target.__getitem__, torch.full((32,), 1 / 32), 0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(true_loss.item(), rel=3e-4)
    errors = [(gradient.double() - true_gradient).norm() for gradient in (leaf.grad, usual)]
    assert errors[0] < 1.5 * errors[1]
