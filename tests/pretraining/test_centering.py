"""Teacher targets: golden numbers, the textbook Sinkhorn-Knopp as a second way, two processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dinov2_hf.pretraining.centering import NoCentering, SinkhornKnoppCentering, SoftmaxCentering
from dinov2_hf.pretraining.logit_chunks import LogitChunks

from .test_losses import sinkhorn_targets, waves, whole


def targets_of(centering: torch.nn.Module, logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of all rows of logits `(n, K)`."""
    return centering(whole(logits), temperature)(slice(None))


def textbook_sinkhorn(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The specification's section 5.1, in float64, step by step."""
    matrix = torch.exp(logits.double() / temperature).T
    num_prototypes, num_rows = matrix.shape
    matrix /= matrix.sum()
    for _ in range(3):
        matrix /= matrix.sum(dim=1, keepdim=True) * num_prototypes
        matrix /= matrix.sum(dim=0, keepdim=True) * num_rows
    return (matrix * num_rows).T


@pytest.mark.parametrize("temperature", [0.04, 0.07, 1.0])
def test_equals_the_textbook(temperature):
    logits = torch.randn(13, 29).clamp(-1, 1)
    torch.testing.assert_close(
        sinkhorn_targets(logits, temperature).double(), textbook_sinkhorn(logits, temperature), atol=1e-6, rtol=1e-4
    )


def test_large_logits_do_not_overflow():
    """exp(4 / 0.04) is infinite in float32; in float64 the textbook still works."""
    logits = torch.randn(16, 8).clamp(-2, 2) * 2
    assert torch.isinf(torch.exp(logits / 0.04)).any()
    targets = sinkhorn_targets(logits, 0.04)
    torch.testing.assert_close(targets.double(), textbook_sinkhorn(logits, 0.04), atol=1e-6, rtol=1e-3)


def rows_far_apart() -> torch.Tensor:
    """Row maxima up to 9 apart, 225 temperatures of 0.04, and of every other row its own prototypes."""
    logits = waves(12, 9, 0.7, 1.3, 0.11) / 2
    logits[::2, :4] += 3
    return logits + torch.arange(12)[:, None] * 0.5 - torch.arange(9) * 0.3


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_rows_far_apart_in_temperatures(temperature):
    """Where `exp` of the logits does not fit into float32 at all; whole, and in chunks that are never held at once."""
    logits = rows_far_apart()
    maxima = logits.amax(dim=1)
    assert (maxima.max() - maxima.min()) / temperature > 88
    expected = textbook_sinkhorn(logits - logits.max(), temperature)
    assert (expected.sum(dim=1) - 1).abs().max() < 1e-12
    targets = sinkhorn_targets(logits, temperature)
    torch.testing.assert_close(targets.double(), expected, atol=1e-6, rtol=1e-4)
    for chunk_size in (1, 5, 12):
        chunks = LogitChunks(logits, torch.eye(9), chunk_size)
        by_chunks = SinkhornKnoppCentering()(chunks, temperature)
        whole = torch.cat([by_chunks(rows) for rows in chunks.chunks()])
        torch.testing.assert_close(whole.double(), expected, atol=1e-6, rtol=1e-4)


def test_rows_sum_to_one_and_prototypes_are_shared():
    targets = sinkhorn_targets(torch.randn(512, 16), 0.5)
    torch.testing.assert_close(targets.sum(1), torch.ones(512))
    plain = torch.softmax(torch.randn(512, 16) / 0.5 + 3 * torch.arange(16) / 16, -1)
    torch.testing.assert_close(targets.mean(0), torch.full((16,), 1 / 16), rtol=0.05, atol=0)
    assert (plain.mean(0) * 16 - 1).abs().max() > 0.5


def test_no_rows():
    assert sinkhorn_targets(torch.zeros(0, 7), 0.1).shape == (0, 7)


def test_no_centering_is_softmax_centering_whose_centre_stays_zero():
    logits, centering = torch.randn(10, 7) + torch.arange(7), SoftmaxCentering(7, 0.9).eval()
    for _ in range(2):
        targets = targets_of(NoCentering(), logits, 0.3)
        torch.testing.assert_close(targets, targets_of(centering, logits, 0.3))
    assert targets_of(NoCentering(), logits, 0.3).dtype == torch.float32
    assert not NoCentering().state_dict()


def test_golden_softmax_centering():
    """Appendix B: the same logits three times; what is applied at the third call comes from the first two."""
    logits, centering = waves(6, 7, 0.7, 1.3, 0.11), SoftmaxCentering(7, 0.9)
    targets_of(centering, logits, 0.07)
    targets_of(centering, logits, 0.07)
    expected = [0.07844092, -0.00957205, -0.02609698, 0.00063209, -0.01581841, 0.00615238, 0.03977626]
    assert centering.center.tolist() == pytest.approx(expected, abs=1e-6)
    targets = targets_of(centering, logits.view(2, 3, 7).flip(0).reshape(6, 7), 0.07)
    expected = [0.6078691, 3.394e-9, 1.345e-10, 0.0871218, 0.3050091, 2.08e-10, 5.45e-10]
    assert targets[0].tolist() == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_centre_rests_in_evaluation():
    centering = SoftmaxCentering(7, 0.9).eval()
    targets_of(centering, torch.randn(4, 7), 0.1)
    assert centering.center.abs().max() == 0


def test_centre_rests_where_nothing_is_masked():
    logits, centering = waves(6, 7, 0.7, 1.3, 0.11), SoftmaxCentering(7, 0.9)
    targets_of(centering, logits, 0.07)
    centre = centering.center.clone()
    assert targets_of(centering, logits[:0], 0.07).shape == (0, 7)
    assert torch.equal(centering.center, centre)


@pytest.mark.parametrize("chunk_size", [100, 5])
@pytest.mark.parametrize("kind", [SinkhornKnoppCentering, lambda: SoftmaxCentering(9, 0.9), NoCentering])
def test_rows_that_do_not_count_change_nothing(kind, chunk_size):
    """Padding, of logits that would matter; and a batch of nothing else makes no number that is not finite."""
    logits, padding = waves(12, 9, 0.7, 1.3, 0.11), 5 * torch.ones(4, 9)
    plain, padded = kind(), kind()
    for _ in range(2):
        expected = plain(whole(logits, chunk_size), 0.07)(slice(None))
        rows = whole(torch.cat([logits, padding]), chunk_size)
        targets = padded(rows, torch.tensor(0.07), None, torch.arange(16) < 12)
        torch.testing.assert_close(targets(slice(12)), expected, atol=1e-6, rtol=1e-5)
    for one, other in zip(plain.buffers(), padded.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    nothing = kind()(whole(padding, chunk_size), 0.07, None, torch.zeros(4, dtype=torch.bool))
    assert nothing(slice(None)).isfinite().all()


def half_of_the_batch(rank: int, port: int, results) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    logits = waves(12, 9, 0.7, 1.3, 0.11)
    rows = logits[:5] if rank == 0 else logits[5:]  # unequal shares, as with masked patches
    centering = SoftmaxCentering(9, 0.9)
    targets_of(centering, logits[:6] if rank == 0 else logits[6:], 0.07)
    one_sided = SoftmaxCentering(9, 0.9)
    targets_of(one_sided, logits[:5] if rank == 0 else logits[:0], 0.07)
    far = rows_far_apart()[:5] if rank == 0 else rows_far_apart()[5:]
    chunks = LogitChunks(far, torch.eye(9), 3)
    targets = SinkhornKnoppCentering()(chunks, 0.04)
    by_chunks = [row for rows in chunks.chunks() for row in targets(rows).tolist()]
    answers = sinkhorn_targets(rows, 0.07).tolist(), sinkhorn_targets(far, 0.04).tolist(), by_chunks
    results.put((rank, *answers, centering.center.tolist(), one_sided.center.tolist()))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(free_port):
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=half_of_the_batch, args=(rank, free_port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    logits, alone, without = waves(12, 9, 0.7, 1.3, 0.11), SoftmaxCentering(9, 0.9), SoftmaxCentering(9, 0.9)
    together, *far_apart = (torch.tensor(answers[0][form] + answers[1][form]) for form in (1, 2, 3))
    torch.testing.assert_close(together, sinkhorn_targets(logits, 0.07), atol=1e-7, rtol=1e-5)
    for targets in far_apart:
        expected = textbook_sinkhorn(rows_far_apart() - rows_far_apart().max(), 0.04)
        torch.testing.assert_close(targets.double(), expected, atol=1e-6, rtol=1e-4)
    targets_of(alone, logits, 0.07)
    targets_of(without, logits[:5], 0.07)
    for *_, center, one_sided in answers:
        torch.testing.assert_close(torch.tensor(center), alone.center, atol=1e-7, rtol=1e-5)
        # A process without rows, which has no masked patch, does not pull the centre to 0.
        torch.testing.assert_close(torch.tensor(one_sided), without.center, atol=1e-7, rtol=1e-5)
