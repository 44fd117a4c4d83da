"""Cosines of nearly equal features, against float64."""

import torch
from torch.nn import functional as F

from dinov2_hf.cosines import centred, cosines_less_one
from dinov2_hf.evaluation.cosine_neighbors import cosine_neighbors
from dinov2_hf.evaluation.ranking.similarity_search import similarities
from dinov2_hf.pictures.nearest_images import nearest_images


def nearly_equal_features():
    """As of a fresh network with LayerScale 1e-5: a bank (300, 64), queries (41, 64), their cosines in float64."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(64, generator=generator)
    bank = common + 1e-4 * torch.randn(300, 64, generator=generator)
    queries = common + 1e-4 * torch.randn(41, 64, generator=generator)
    return bank, queries, F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T


def check_neighbors(rows, cosines):
    # The features themselves are float32, so distances may differ by a thousandth, and the order by as much.
    distances, shortest = 1 - cosines.gather(1, rows), 1 - cosines.topk(rows.shape[1], dim=1).values
    assert (distances <= 1.002 * shortest).all()


def test_neighbors_are_those_of_float64():
    bank, queries, cosines = nearly_equal_features()
    assert len(cosines.float().unique()) < 5  # what float32 can tell apart
    for chunk_size in (5, 64):  # the bank in tiles, and whole
        found, rows = cosine_neighbors(bank, F.normalize(queries, dim=1), 10, chunk_size)
        check_neighbors(rows, cosines)
        torch.testing.assert_close(found, cosines.topk(10, dim=1).values.float())

    found = nearest_images(queries, bank, 10)
    check_neighbors(found.rows, cosines)
    torch.testing.assert_close(found.similarities, cosines.topk(10, dim=1).values.float())

    ((rows, scores),) = similarities(F.normalize(bank, dim=1), F.normalize(queries, dim=1))
    assert rows == slice(0, 256)
    check_neighbors(scores.argsort(dim=1, descending=True), cosines)


def test_a_row_of_zeros_has_the_cosine_zero():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-0.6, 0.8]])
    centre = torch.tensor([0.3, 0.2])
    found = cosines_less_one(centred(rows, centre), centred(rows, centre)) + 1
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, -0.6], [0.0, 0.0, 0.0], [-0.6, 0.0, 1.0]]))


def test_an_outer_autocast_changes_nothing():
    bank, queries, _ = nearly_equal_features()
    plain = nearest_images(queries, bank, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_images(queries, bank, 10).rows, plain.rows)
