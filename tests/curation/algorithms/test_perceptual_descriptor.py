"""A descriptor without a network: what copies keep, and its parts against plain loops."""

import math

import pytest
import torch
from PIL import Image, ImageOps

from dinov2_hf.curation.algorithms.perceptual_descriptor import (
    CELLS,
    ORIENTATIONS,
    PatchSums,
    PerceptualDescriptor,
    grey_picture,
    mirrored,
    oriented_gradients,
    patches_of,
    summed_area,
)
from tests.curation.copies import COPIES
from tests.curation.scenes import scene


@pytest.fixture(scope="module")
def pool() -> list[Image.Image]:
    return [scene(seed, width=160, height=120) for seed in range(40)]


@pytest.fixture(scope="module")
def descriptor(pool) -> PerceptualDescriptor:
    return PerceptualDescriptor().fit(PatchSums()(pool))


def test_pictures_that_have_nothing_in_common_are_far_below_the_thresholds(pool, descriptor):
    vectors = descriptor.describe(pool)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(40))
    cosines = (vectors @ vectors.T)[~torch.eye(40, dtype=torch.bool)]
    assert cosines.max() < 0.45
    assert abs(cosines.mean()) < 0.1


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_above_the_threshold(name, pool, descriptor):
    """The middle one above that of copies in a pool, all above that of benchmarks and above what is no copy."""
    vectors = descriptor.describe(pool[:12])
    copies = descriptor.describe([COPIES[name](image) for image in pool[:12]])
    cosines = vectors @ copies.T
    assert cosines.diagonal().median() > 0.6
    assert cosines.diagonal().min() > 0.45
    assert (cosines.argmax(dim=1) == torch.arange(12)).all()


def test_a_mirror_image_has_the_same_sum():
    """At a size at which the grids of patches are symmetric, but for rounding."""
    picture = scene(5, width=128, height=128)
    sums = PatchSums()([picture, ImageOps.mirror(picture)])
    assert sums[0] @ sums[1] > 0.95


def test_one_seed_for_all_machines():
    """Descriptors of shards and runs must be comparable: these numbers may never change."""
    found = PatchSums()
    assert found.frequencies[0, 0, 0].item() == pytest.approx(0.1257302 * math.sqrt(16), abs=1e-4)


@pytest.mark.parametrize("picture", [Image.new("RGB", (50, 40), "red"), Image.new("RGB", (1, 1)), scene(0, 200, 4)])
def test_pictures_with_little_in_them(picture, descriptor):
    vector = descriptor.describe([picture])[0]
    assert vector.isfinite().all()
    assert vector.norm().item() == pytest.approx(0 if picture.getcolors(1) else 1, abs=1e-5)


def test_a_pool_of_one_image(pool):
    sums = PatchSums()(pool[:1])
    vector = PerceptualDescriptor().fit(sums).describe(pool[:1])
    assert vector.norm().item() == pytest.approx(1, abs=1e-5)


def test_patches_are_means_over_cells():
    gradients = torch.rand(ORIENTATIONS, 40, 50, generator=torch.Generator().manual_seed(0))
    patches = patches_of(summed_area(gradients), 28)
    expected = []
    for y in range(0, 40 - 28 + 1, 5):
        for x in range(0, 50 - 28 + 1, 5):
            patch = torch.zeros(CELLS, CELLS, ORIENTATIONS)
            for row in range(CELLS):
                for column in range(CELLS):
                    box = gradients[:, y + 7 * row : y + 7 * row + 7, x + 7 * column : x + 7 * column + 7]
                    patch[row, column] = box.mean(dim=(1, 2))
            expected.append(patch)
    torch.testing.assert_close(patches, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_a_mirrored_patch_is_the_patch_of_the_mirror():
    grey = grey_picture(scene(6, width=96, height=96))
    patch = patches_of(summed_area(oriented_gradients(grey[:96, :96])), 96)
    flipped = patches_of(summed_area(oriented_gradients(grey[:96, :96].flip(1))), 96)
    torch.testing.assert_close(mirrored(patch), flipped, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_ramp_points_one_way():
    ramp = torch.linspace(0, 1, 32).expand(32, 32)
    gradients = oriented_gradients(ramp)
    assert gradients[:, 8:24, 8:24].mean(dim=(1, 2)).argmax() == 0  # to the right
    assert oriented_gradients(ramp.T)[:, 8:24, 8:24].mean(dim=(1, 2)).argmax() == ORIENTATIONS // 4  # down
