"""Raw pixels in the place of features."""

import torch

from dinov2_hf.evaluation.baselines import PatchPixelModel, PixelModel
from dinov2_hf.evaluation.dense.patch_features import segmentation_features
from dinov2_hf.features import image_features


def test_large_images_are_averaged_down():
    pixels = torch.randn(2, 3, 4, 6)
    expected = torch.zeros(2, 3, 2, 2)
    for row in range(2):
        for column in range(2):
            block = pixels[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            expected[:, :, row, column] = block.mean(dim=(2, 3))
    found = PixelModel(largest_side=2)(pixels).last_hidden_state
    torch.testing.assert_close(found, expected.flatten(1).unsqueeze(1))


def test_small_images_stay_as_they_are():
    pixels = torch.randn(2, 3, 4, 6)
    for model in (PixelModel(), PixelModel(largest_side=6)):
        assert torch.equal(model(pixels).last_hidden_state, pixels.flatten(1).unsqueeze(1))


def test_patches_are_their_pixels():
    """7 x 10 pixels have 2 x 3 whole patches of 3 pixels. Segmentation pads to 3 x 4."""
    pixels, model = torch.randn(2, 3, 7, 10), PatchPixelModel(3)
    grid = image_features(model, pixels, "patch_grid")
    assert grid.shape == (2, 2, 3, 27)
    for row in range(2):
        for column in range(3):
            patch = pixels[:, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            assert torch.equal(grid[:, row, column], patch.flatten(1))
    assert torch.equal(segmentation_features(model, pixels[..., :6, :9], 1), grid.permute(0, 3, 1, 2))
    assert segmentation_features(model, pixels, 1).shape == (2, 27, 3, 4)
