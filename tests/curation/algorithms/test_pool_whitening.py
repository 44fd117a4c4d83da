"""What is learned from a pool, against moments of the pool and plain numbers."""

import torch

from dinov2_hf.curation.algorithms.pool_whitening import FEW_IMAGES, PoolWhitening


class ThreeOfFour(PoolWhitening):
    given_width = 4
    width = 3
    toning = 0.5
    most_toned = 3
    images_per_toned = 5

    def of_generated_pictures(self):
        return torch.arange(4.0 * FEW_IMAGES).reshape(FEW_IMAGES, 4)


def moments(vectors):
    centred = vectors.double() - vectors.double().mean(dim=0)
    return centred.T @ centred / len(vectors)


def test_the_directions_of_most_variance_become_equal_and_that_of_least_is_left_out():
    draw = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 5.0, 2.0, 0.1])
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    pool = draw @ rotation + 7
    fitted = ThreeOfFour().fit(pool)
    projected = (pool - fitted.mean) @ fitted.projection
    third_variance = torch.linalg.eigvalsh(moments(pool))[1]
    torch.testing.assert_close(moments(projected), third_variance * torch.eye(3).double(), rtol=1e-3, atol=1e-3)
    found = fitted(pool)
    assert found.shape == (500, 3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(500))
    torch.testing.assert_close(found[5], torch.nn.functional.normalize(projected[5], dim=0), rtol=1e-5, atol=1e-6)


def test_few_images_tone_few_directions():
    """Of 11 directions that 50 images could span, 10 are toned down: the 50 stay as far apart as they are beyond."""

    class Wide(ThreeOfFour):
        given_width, width, most_toned = 40, 40, 40

    pool = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)) * torch.arange(40, 0, -1)
    fitted = Wide().fit(pool)
    variances = torch.linalg.eigvalsh(moments((pool - fitted.mean) @ fitted.projection)).flip(0)
    expected = torch.linalg.eigvalsh(moments(pool)).flip(0)
    torch.testing.assert_close(variances[:10], expected[9].expand(10), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(variances[10:], expected[10:], rtol=1e-3, atol=1e-2)


def test_generated_pictures_make_up_for_few():
    pool = torch.zeros(30, 4)
    fitted = ThreeOfFour().fit(pool)
    generated = ThreeOfFour().of_generated_pictures()
    torch.testing.assert_close(fitted.mean, generated[30:].sum(dim=0) / FEW_IMAGES)
