"""Similarity maps of a patch, written out as loops."""

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf.pictures.attention_maps import colour_map
from dinov2_hf.pictures.patch_similarity import best_patches, draw_similarity, patch_at, similarity_map


def test_the_map_is_the_cosine_with_every_patch():
    features = torch.randn(3, 4, 5, dtype=torch.float64)
    patch = features[1, 2]
    found = similarity_map(patch, features)
    for row in range(3):
        for column in range(4):
            other = features[row, column]
            assert found[row, column] == pytest.approx(float(patch @ other / patch.norm() / other.norm()))
    assert found[1, 2] == pytest.approx(1.0)


def test_the_best_patches_are_sorted_and_apart():
    similarity = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.0], [0.7, 0.1, 0.6]])
    assert best_patches(similarity, 9, min_distance=0) == [
        (0, 0), (0, 1), (2, 0), (2, 2), (1, 1), (1, 0), (0, 2), (2, 1), (1, 2),
    ]  # fmt: skip
    assert best_patches(similarity, 3, min_distance=1.5) == [(0, 0), (2, 0), (2, 2)]  # (0, 1) is beside the best
    assert best_patches(similarity, 1) == [(0, 0)]


@pytest.mark.parametrize(
    ("place", "patch"),
    [((0, 0), (0, 0)), ((0.99, 0), (0, 3)), ((0.26, 0.99), (1, 1)), ((1, 1), (1, 3)), ((-0.1, 2), (1, 0))],
)
def test_a_point_lies_in_a_patch(place, patch):
    assert patch_at(*place, (2, 4)) == patch


def test_the_drawing_blends_the_map_and_frames_the_patches():
    picture = Image.new("RGB", (40, 20), (100, 0, 200))
    similarity = np.array([[0.0, 0.25, 0.5, 0.9]])
    plain = draw_similarity(picture, similarity, (0.0, 0.5))
    colours = colour_map(similarity, (0.0, 0.5))
    for column in range(4):
        expected = 0.35 * np.array([100, 0, 200]) + 0.65 * 255 * colours[0, column]
        np.testing.assert_allclose(plain.getpixel((10 * column + 5, 10)), expected, atol=1.5)
    assert plain.getpixel((25, 10)) == plain.getpixel((35, 10))  # what is beyond the limits is as at them
    framed = draw_similarity(picture, similarity, (0.0, 0.5), [(0, 1)])
    assert framed.getpixel((10, 10)) == framed.getpixel((19, 10)) == (255, 255, 255)
    assert framed.getpixel((15, 10)) == plain.getpixel((15, 10))
    assert framed.getpixel((30, 10)) == plain.getpixel((30, 10))
